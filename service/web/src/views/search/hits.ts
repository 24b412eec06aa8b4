// What hits are called.

import { signal } from "@preact/signals";
import { ApiError, get, part } from "../../lib/api.ts";
import type { Hit, Item } from "../../lib/types.ts";

const itemTexts = signal<ReadonlyMap<string, string>>(new Map());
const askedTexts = new Set<string>();

/** A hit's own words: of its payload, else of its item, which is asked for once. */
export function wordsOf(name: string, hit: Hit): string {
  for (const key of ["caption", "text", "title", "name"]) {
    const value = hit.payload[key];
    if (typeof value === "string" && value) return value;
  }
  const key = `${name}/${hit.id}`;
  if (!askedTexts.has(key)) {
    askedTexts.add(key);
    get<Item>(`/galleries/${part(name)}/items/${hit.id.split("/").map(part).join("/")}`).then(
      (item) => (itemTexts.value = new Map(itemTexts.value).set(key, item.text ?? "")),
      (error: unknown) => (error instanceof ApiError ? undefined : askedTexts.delete(key)),
    );
  }
  return itemTexts.value.get(key) ?? "";
}
