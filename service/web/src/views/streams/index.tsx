import "./streams.css";
import { route } from "../../lib/router.ts";
import { StreamPage } from "./stream.tsx";
import { StreamList } from "./list.tsx";

/** `#/streams` and `#/streams/NAME`. */
export function StreamsView() {
  const [, name] = route.value;
  return name ? <StreamPage key={name} name={name} /> : <StreamList />;
}
