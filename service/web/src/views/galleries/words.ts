// Galleries and items in words.

import { count } from "../../lib/format.ts";
import type { GalleryCard, Item, Json, Modality } from "../../lib/types.ts";

export const INDEX_WORDS: Record<string, string> = {
  flat: "Exact: compares with every item. Right for up to about a hundred thousand.",
  ivf: "Approximate: looks into the nearest groups only. For large galleries.",
  hnsw: "Approximate: follows a graph of neighbours. Fast searches, slower to fill.",
  torch: "Exact, with torch on the server's device: for a server with a GPU.",
};

export const MODALITY_WORDS: Record<Modality, string> = { image: "picture", text: "text" };

/** "500 pictures, 500 texts". */
export function contents(card: Pick<GalleryCard, "targets">): string {
  const named = [
    ["image", "picture"],
    ["text", "text"],
    ["anchor", "anchor"],
  ] as const;
  return named
    .filter(([target]) => (card.targets[target] ?? 0) > 0)
    .map(([target, word]) => `${count(card.targets[target])} ${word}${card.targets[target] === 1 ? "" : "s"}`)
    .join(", ");
}

export const items = (number: number): string => `${count(number)} ${number === 1 ? "item" : "items"}`;

/** The payload in a line, without what the text says already: "colour: red · price: 5". */
export function payloadLine(item: Pick<Item, "payload" | "text">): string {
  return Object.entries(item.payload)
    .filter(([, value]) => value !== item.text)
    .map(([name, value]) => `${name}: ${short(value)}`)
    .join(" · ");
}

function short(value: Json): string {
  if (Array.isArray(value)) return value.map(short).join(", ");
  return typeof value === "object" && value !== null ? JSON.stringify(value) : String(value);
}
