export function GalleriesView() {
  return <h1>Galleries</h1>;
}
