// Choosing a query: typed, a picture, or an item of the gallery.

import { signal } from "@preact/signals";
import { get, part } from "../../lib/api.ts";
import { loadPicture } from "../../lib/pictures.ts";
import { galleries, gallery, messageOf, searchFor, tell } from "../../lib/state.ts";
import type { Item, ItemPage } from "../../lib/types.ts";
import { previewSoon, search } from "./search.ts";
import { caption, kinds, picture, target, truth, type Picture } from "./state.ts";

export function changed(): void {
  void previewSoon();
  void search();
}

/** One more character: nothing is searched before Enter. */
export function type(text: string): void {
  caption.value = text;
  truth.value = null;
  void previewSoon();
}

export function usePicture(next: Picture | null): void {
  picture.value = next;
  truth.value = null;
  changed();
}

export type Taken = "words" | "picture";

/** Make an item of the gallery the query. */
export async function useSample(item: Item, taken: Taken): Promise<void> {
  if (taken === "picture" && item.preview) {
    const uri = await loadPicture(item.preview);
    picture.value = { uri, name: `${item.id.replaceAll(/[^\w.-]/g, "_")}.webp` };
    caption.value = "";
  } else {
    caption.value = item.text ?? "";
    picture.value = null;
  }
  truth.value = item.id;
  changed();
}

export const samples = signal<Item[]>([]);
export const samplesTrouble = signal("");
export const samplesTotal = signal(0);
export const SAMPLES = 12;
let sampleStart = 0;
let sampled = "";

/** Another dozen items. `where`: from the start, the next ones, or anywhere. */
export async function loadSamples(where: "start" | "next" | "anywhere"): Promise<void> {
  const name = gallery.value;
  const total = galleries.value.find((card) => card.name === name)?.items ?? samplesTotal.value;
  if (where === "start") sampleStart = 0;
  else if (where === "next") sampleStart = sampleStart + SAMPLES >= total ? 0 : sampleStart + SAMPLES;
  else sampleStart = Math.floor(Math.random() * Math.max(1, total - SAMPLES + 1));
  try {
    const page = await get<ItemPage>(`/galleries/${part(name)}/items?offset=${sampleStart}&limit=${SAMPLES}`);
    if (name !== gallery.value) return;
    samples.value = page.items;
    samplesTotal.value = page.total;
    samplesTrouble.value = "";
  } catch (error) {
    samples.value = [];
    samplesTrouble.value = messageOf(error);
  }
}

/** Show the gallery's own items; where the query was one of another gallery, or none, take one of this. */
export async function enterGallery(): Promise<void> {
  const handed = searchFor.value;
  searchFor.value = null;
  const entered = sampled !== gallery.value;
  if (entered) {
    sampled = gallery.value;
    target.value = "auto";
    await loadSamples("start");
  }
  if (handed) await tell(() => useHanded(handed));
  else if (entered) await useFirst();
}

/** A different one with each visit: the stream learns from it, and shall not see the same query over and over. */
const anyOf = (items: readonly Item[]): Item | undefined => items[Math.floor(Math.random() * items.length)];

async function useFirst(): Promise<void> {
  const untouched = kinds.value.length === 0 || truth.value !== null;
  const first = anyOf(samples.value.filter((item) => item.text)) ?? anyOf(samples.value.filter((item) => item.preview));
  if (untouched && first) {
    await useSample(first, first.text ? "words" : "picture");
    return;
  }
  if (untouched) {
    caption.value = "";
    picture.value = null;
    truth.value = null;
  }
  changed();
}

async function useHanded(handed: { text: string | null; picture: string | null }): Promise<void> {
  picture.value = handed.picture ? { uri: await loadPicture(handed.picture), name: "item.webp" } : null;
  caption.value = handed.text ?? "";
  truth.value = handed.picture ? itemOf(handed.picture) : null;
  changed();
}

/** Whose preview this path is. */
const itemOf = (path: string): string | null => {
  const id = /\/previews\/([^?]+)/.exec(path)?.[1];
  return id === undefined ? null : decodeURIComponent(id);
};
