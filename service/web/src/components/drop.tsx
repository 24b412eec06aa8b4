import { useRef, useState } from "preact/hooks";
import type { ComponentChildren } from "preact";

const paths = new WeakMap<File, string>();

/** Where a file lay below the folder that was dropped; its name where it was dropped alone. */
export const pathOf = (file: File): string => paths.get(file) ?? file.name;

/** All files of what was dropped, those of folders too. */
async function filesOf(transfer: DataTransfer): Promise<File[]> {
  // The list is empty as soon as the event is over.
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry());
  const plain = [...transfer.files];
  if (!entries.some((entry) => entry?.isDirectory)) return plain;
  const found: File[] = [];
  for (const entry of entries) if (entry) await walk(entry, found);
  return found;
}

async function walk(entry: FileSystemEntry, found: File[]): Promise<void> {
  if (entry.name.startsWith(".")) return;
  if (entry.isFile) {
    const file = await new Promise<File>((resolve, reject) => (entry as FileSystemFileEntry).file(resolve, reject));
    const [, ...below] = entry.fullPath.slice(1).split("/");
    if (below.length > 0) paths.set(file, below.join("/"));
    found.push(file);
    return;
  }
  const reader = (entry as FileSystemDirectoryEntry).createReader();
  for (;;) {
    // A reader gives so many at a time, and none at the end.
    const some = await new Promise<FileSystemEntry[]>((resolve, reject) => reader.readEntries(resolve, reject));
    if (some.length === 0) return;
    for (const one of some) await walk(one, found);
  }
}

/** A place for files: dropped, chosen with a click or the keyboard, or pasted while it has the focus. */
export function Drop(props: {
  label: string;
  accept: string;
  multiple?: boolean;
  files: (files: File[]) => void;
  children?: ComponentChildren;
  disabled?: boolean;
  class?: string;
}) {
  const [over, setOver] = useState(false);
  const input = useRef<HTMLInputElement>(null);
  const take = (list: Iterable<File> | null | undefined) => {
    const files = [...(list ?? [])];
    if (files.length > 0 && !props.disabled) props.files(props.multiple ? files : files.slice(0, 1));
  };
  return (
    <div
      class={`drop ${over ? "over" : ""} ${props.class ?? ""}`}
      onDragOver={(event) => {
        event.preventDefault();
        setOver(true);
      }}
      onDragLeave={() => setOver(false)}
      onDrop={(event) => {
        event.preventDefault();
        setOver(false);
        if (event.dataTransfer) void filesOf(event.dataTransfer).then(take, () => take(null));
      }}
      onPaste={(event) => take(event.clipboardData?.files)}
    >
      {props.children}
      <button
        type="button"
        class="drop-button"
        disabled={props.disabled ?? false}
        onClick={() => input.current?.click()}
      >
        {props.label}
      </button>
      <input
        ref={input}
        type="file"
        hidden
        aria-label={props.label}
        accept={props.accept}
        multiple={props.multiple ?? false}
        onChange={(event) => {
          take(event.currentTarget.files);
          event.currentTarget.value = "";
        }}
      />
    </div>
  );
}
