import "./galleries.css";
import { route } from "../../lib/router.ts";
import { GalleryPage } from "./gallery.tsx";
import { GalleryList } from "./list.tsx";

/** `#/galleries`: all of them; `#/galleries/NAME`: what is in one. */
export function GalleriesView() {
  const name = route.value[1];
  return name === undefined ? <GalleryList /> : <GalleryPage key={name} name={name} />;
}
