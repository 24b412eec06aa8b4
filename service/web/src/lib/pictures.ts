// Pictures and other files of the person at the page.

import { requestBlob } from "./api.ts";

export function dataUri(blob: Blob): Promise<string> {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result as string);
    reader.onerror = () => reject(new Error("the file cannot be read"));
    reader.readAsDataURL(blob);
  });
}

/** A picture of this server as data URI, with the key where one is needed. */
export async function loadPicture(path: string): Promise<string> {
  return dataUri(await requestBlob(path));
}

/** Longest side in pixels that is sent; more than any encoder looks at. */
const SENT_PIXELS = 1024;
const TAKEN = new Set(["image/png", "image/jpeg", "image/webp", "image/gif", "image/bmp", "image/tiff"]);

/**
 * A file as it goes into a request: as it is where the server reads it and it is small, else drawn anew as JPEG.
 * Raises Error where the browser cannot read it.
 */
export async function prepared(file: Blob, mostBytes: number): Promise<string> {
  if (TAKEN.has(file.type) && file.size <= Math.min(mostBytes, 1 << 20)) return dataUri(file);
  let bitmap: ImageBitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    if (TAKEN.has(file.type) && file.size <= mostBytes) return dataUri(file);
    throw new Error("this is no picture that can be read");
  }
  const scale = Math.min(1, SENT_PIXELS / Math.max(bitmap.width, bitmap.height));
  const canvas = new OffscreenCanvas(
    Math.max(1, Math.round(bitmap.width * scale)),
    Math.max(1, Math.round(bitmap.height * scale)),
  );
  const context = canvas.getContext("2d");
  if (!context) throw new Error("the browser cannot draw");
  context.fillStyle = "white";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  return dataUri(await canvas.convertToBlob({ type: "image/jpeg", quality: 0.92 }));
}

/** Let the browser save some bytes. */
export function save(blob: Blob, name: string): void {
  const url = URL.createObjectURL(blob);
  const anchor = document.createElement("a");
  anchor.href = url;
  anchor.download = name;
  anchor.click();
  window.setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
