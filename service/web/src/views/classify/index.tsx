export function ClassifyView() {
  return <h1>Classify</h1>;
}
