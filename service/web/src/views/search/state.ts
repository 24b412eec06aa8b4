// What the view holds while the page lives: the query, what is done to it, and what was found.

import { computed, signal } from "@preact/signals";
import { ApiError, get, part, post } from "../../lib/api.ts";
import { loadPicture } from "../../lib/pictures.ts";
import { pythonCall } from "../../lib/snippets.ts";
import { gallery, galleries, messageOf, searchFor, stream, tell } from "../../lib/state.ts";
import type {
  Corruptions,
  Hit,
  Item,
  ItemPage,
  Json,
  Modality,
  Mode,
  RetrieveAnswer,
  Target,
} from "../../lib/types.ts";
import type { Corruption, Query } from "./drift.ts";

export interface Picture {
  uri: string;
  name: string;
}

export const caption = signal("");
export const picture = signal<Picture | null>(null);
/** The item that the query was made from, so the right answer. */
export const truth = signal<string | null>(null);

export const target = signal<Target>("auto");
export const mode = signal<Mode>("auto");
export const k = signal(8);

/** What is done to pictures and to texts; null: nothing. */
export const corruption = signal<Record<Modality, Corruption | null>>({ image: null, text: null });
export const corruptions = signal<Corruptions | null>(null);
/** Why there are none; empty while they are not asked for. */
export const corruptionsTrouble = signal("");

const plain = computed((): Query => {
  const query: Query = {};
  if (caption.value.trim()) query.text = caption.value.trim();
  if (picture.value) query.image = picture.value.uri;
  return query;
});

export const kinds = computed((): Modality[] => [
  ...(plain.value.image !== undefined ? (["image"] as const) : []),
  ...(plain.value.text !== undefined ? (["text"] as const) : []),
]);

export const isCorrupted = computed(() => kinds.value.some((kind) => corruption.value[kind] !== null));

/** The query as it is sent, once the server has degraded it. `clean`: what it was made of. */
export const degraded = signal<{ clean: Query; query: Query } | null>(null);
export const degrading = signal(false);
export const degradeTrouble = signal("");

export interface Side {
  answer: RetrieveAnswer | null;
  trouble: string;
  busy: boolean;
}

const NOTHING: Side = { answer: null, trouble: "", busy: false };
export const source = signal<Side>(NOTHING);
export const adapted = signal<Side>(NOTHING);
/** What the hits that are shown were asked with. */
export const shown = signal<{ truth: string | null; gallery: string; mode: Mode } | null>(null);

const isAbort = (error: unknown): boolean => error instanceof DOMException && error.name === "AbortError";

// Corruption of the query ------------------------------------------------------------------------------------------

export async function loadCorruptions(): Promise<void> {
  try {
    corruptions.value = await get<Corruptions>("/corruptions");
    corruptionsTrouble.value = "";
  } catch (error) {
    corruptionsTrouble.value = messageOf(error);
  }
}

let lastDegraded: { key: string; query: Query } | null = null;

async function degrade(query: Query, signal: AbortSignal): Promise<Query> {
  const choice = corruption.value;
  const key = JSON.stringify([query, query.image ? choice.image : null, query.text ? choice.text : null]);
  if (lastDegraded?.key === key) return lastDegraded.query;
  const one = async (kind: Modality): Promise<Query> => {
    const content = query[kind];
    const chosen = choice[kind];
    if (content === undefined) return {};
    if (!chosen) return { [kind]: content };
    const body = { corruption: chosen.name, severity: chosen.severity, seed: 0, queries: [{ [kind]: content }] };
    const answer = await post<{ queries: Query[] }>("/corruptions", body, { signal });
    return answer.queries[0] ?? {};
  };
  const [image, text] = await Promise.all([one("image"), one("text")]);
  lastDegraded = { key, query: { ...image, ...text } };
  return lastDegraded.query;
}

const PAUSE_MS = 160;
let preview = new AbortController();

/** Show the query as it will be sent, shortly after the last change of it. */
export async function previewSoon(): Promise<boolean> {
  preview.abort();
  const mine = (preview = new AbortController());
  degradeTrouble.value = "";
  if (!isCorrupted.value) {
    degraded.value = null;
    degrading.value = false;
    return true;
  }
  degrading.value = true;
  await new Promise((resolve) => window.setTimeout(resolve, PAUSE_MS));
  if (mine.signal.aborted) return false;
  const clean = plain.value;
  try {
    const query = await degrade(clean, mine.signal);
    if (!mine.signal.aborted) degraded.value = { clean, query };
  } catch (error) {
    if (!isAbort(error) && !mine.signal.aborted) {
      degraded.value = null;
      degradeTrouble.value = messageOf(error);
    }
  } finally {
    if (!mine.signal.aborted) degrading.value = false;
  }
  return !mine.signal.aborted;
}

export function corrupt(kind: Modality, choice: Corruption | null): void {
  corruption.value = { ...corruption.value, [kind]: choice };
  void previewSoon().then((current) => (current && !degradeTrouble.value ? search() : undefined));
}

// Search -----------------------------------------------------------------------------------------------------------

let controller = new AbortController();

/** Ask the source model and the stream the same; the newest query wins. */
export async function search(): Promise<void> {
  controller.abort();
  if (kinds.value.length === 0 || !gallery.value) {
    source.value = adapted.value = NOTHING;
    shown.value = null;
    return;
  }
  const mine = (controller = new AbortController());
  const { signal } = mine;
  const asked = { truth: truth.value, gallery: gallery.value, mode: mode.value };
  source.value = { ...source.value, busy: true, trouble: "" };
  adapted.value = { ...adapted.value, busy: true, trouble: "" };
  const clean = plain.value;
  let query: Query;
  try {
    query = await degrade(clean, signal);
  } catch (error) {
    if (signal.aborted || isAbort(error)) return;
    const trouble = `The query could not be corrupted: ${messageOf(error)}`;
    source.value = { answer: null, busy: false, trouble };
    adapted.value = { answer: null, busy: false, trouble };
    return;
  }
  if (signal.aborted) return;
  if (isCorrupted.value) degraded.value = { clean, query };
  const options = { gallery: gallery.value, k: k.value, ...(target.value === "auto" ? {} : { target: target.value }) };
  const settle = (side: typeof source) => (answer: RetrieveAnswer | null, trouble: string) => {
    if (signal.aborted) return;
    side.value = { answer, trouble, busy: false };
    shown.value = asked;
  };
  const one = (named: Record<string, Json>, remember: boolean, settled: ReturnType<typeof settle>) =>
    post<RetrieveAnswer>(
      "/retrieve",
      { queries: [query as Json], ...named },
      { signal, ...(remember ? told(query, named) : {}) },
    ).then(
      (answer) => settled(answer, ""),
      (error: unknown) => (isAbort(error) ? undefined : settled(null, messageOf(error))),
    );
  const off = asked.mode === "off";
  const both = [one({ ...options, adapt: "off" }, off, settle(source))];
  if (off) adapted.value = NOTHING;
  else both.push(one({ ...options, stream: stream.value, adapt: asked.mode }, true, settle(adapted)));
  await Promise.all(both);
}

/** For "copy as": the query as a file where it is a picture, and the client's own words. */
function told(query: Query, named: Record<string, Json>) {
  const file = fileName();
  const asked =
    query.image === undefined
      ? query.text!
      : { ...(query.text === undefined ? {} : { text: query.text }), image: file };
  const python = `answer = ${pythonCall("client.retrieve", [asked], named)}\nfor hit in answer.hits:\n    print(f"{hit.score:.3f}", hit.id, hit.payload)`;
  return { remember: true, python, ...(query.image === undefined ? {} : { files: [file] }) };
}

/** What the picture that is sent is called on disk. */
export function fileName(): string {
  const name = picture.value?.name ?? "query.png";
  const done = corruption.value.image;
  return done ? `${name.replace(/\.[^.]*$/, "")}-${done.name}-${done.severity}.png` : name;
}

// Choosing a query -------------------------------------------------------------------------------------------------

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

async function useFirst(): Promise<void> {
  const untouched = kinds.value.length === 0 || truth.value !== null;
  const first = samples.value.find((item) => item.text) ?? samples.value.find((item) => item.preview);
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

// What hits are called ---------------------------------------------------------------------------------------------

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
