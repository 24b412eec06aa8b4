import { useRef, useState } from "preact/hooks";
import type { ComponentChildren } from "preact";

/** A place for files: dropped, chosen with a click or the keyboard, or pasted while it has the focus. */
export function Drop(props: { label: string; accept: string; multiple?: boolean; files: (files: File[]) => void; children?: ComponentChildren; disabled?: boolean; class?: string }) {
  const [over, setOver] = useState(false);
  const input = useRef<HTMLInputElement>(null);
  const take = (list: FileList | null | undefined) => {
    const files = [...(list ?? [])];
    if (files.length > 0 && !props.disabled) props.files(props.multiple ? files : files.slice(0, 1));
  };
  return (
    <div class={`drop ${over ? "over" : ""} ${props.class ?? ""}`}
      onDragOver={(event) => {
        event.preventDefault();
        setOver(true);
      }}
      onDragLeave={() => setOver(false)}
      onDrop={(event) => {
        event.preventDefault();
        setOver(false);
        take(event.dataTransfer?.files);
      }}
      onPaste={(event) => take(event.clipboardData?.files)}>
      {props.children}
      <button type="button" class="drop-button" disabled={props.disabled ?? false} onClick={() => input.current?.click()}>{props.label}</button>
      <input ref={input} type="file" class="unseen" tabIndex={-1} aria-label={props.label} accept={props.accept} multiple={props.multiple ?? false}
        onChange={(event) => {
          take(event.currentTarget.files);
          event.currentTarget.value = "";
        }} />
    </div>
  );
}
