import { useEffect, useState } from "preact/hooks";
import { keyKind, keys, requestBlob } from "../lib/api.ts";
import { config, connection, doubt } from "../lib/state.ts";

/** The preview of an item, or its text where it has none. `path` as the server gives it. */
export function Preview(props: { path?: string | undefined; text: string; class?: string }) {
  const [broken, setBroken] = useState(false);
  const source = useSource(broken ? undefined : props.path, () => setBroken(true));
  // What failed while the server was away is asked for again.
  const there = connection.value !== "lost" && !doubt.value;
  useEffect(() => setBroken(false), [props.path, there]);
  if (!props.path || broken) return <span class={`preview words ${props.class ?? ""}`}>{props.text}</span>;
  return (
    <span class={`preview ${props.class ?? ""}`}>
      {source && <img src={source} alt={props.text} loading="lazy" decoding="async" onError={() => setBroken(true)} />}
    </span>
  );
}

/** A picture's address. Where the server wants a key, which an <img> cannot send, the page fetches it itself. */
function useSource(path: string | undefined, failed: () => void): string | null {
  const direct = !config.value?.keys.api;
  const held = keys.value;
  const [fetched, setFetched] = useState<string | null>(null);
  useEffect(() => {
    if (direct || !path || !keyKind("GET", path)) return undefined;
    let url = "";
    let gone = false;
    requestBlob(path).then(
      (blob) => {
        if (gone) return;
        url = URL.createObjectURL(blob);
        setFetched(url);
      },
      () => !gone && failed(),
    );
    return () => {
      gone = true;
      if (url) URL.revokeObjectURL(url);
      setFetched(null);
    };
  }, [path, direct, held]);
  return direct ? (path ?? null) : fetched;
}
