// The part of the address after #: `#/streams/camera-1` is ["streams", "camera-1"].

import { signal } from "@preact/signals";

function read(): string[] {
  return location.hash.replace(/^#\/?/, "").split("/").filter(Boolean).map(decode);
}

function decode(part: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

export const route = signal<string[]>(read());

window.addEventListener("hashchange", () => {
  route.value = read();
});

export const link = (...parts: string[]): string => `#/${parts.map(encodeURIComponent).join("/")}`;

export function go(...parts: string[]): void {
  location.hash = link(...parts);
}
