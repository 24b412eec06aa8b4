// What the view holds while the page lives: the query, what is done to it, and what was found.

import { computed, signal } from "@preact/signals";
import type { Corruption } from "../../lib/corruptions.ts";
import type { Modality, Mode, RetrieveAnswer, Target } from "../../lib/types.ts";
import type { Query } from "./send.ts";

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

/** The query before anything is done to it. */
export const plain = computed((): Query => {
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

export const NOTHING: Side = { answer: null, trouble: "", busy: false };
export const source = signal<Side>(NOTHING);
export const adapted = signal<Side>(NOTHING);
/** What the hits that are shown were asked with. */
export const shown = signal<{ truth: string | null; gallery: string; mode: Mode } | null>(null);

/** What the picture that is sent is called on disk. */
export function fileName(): string {
  const name = picture.value?.name ?? "query.png";
  const done = corruption.value.image;
  return done ? `${name.replace(/\.[^.]*$/, "")}-${done.name}-${done.severity}.png` : name;
}
