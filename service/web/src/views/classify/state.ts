// What the view holds while the page lives: the sample, what is done to it, and what both models say.

import { computed, signal } from "@preact/signals";
import type { Corruption } from "../../lib/corruptions.ts";
import type { Side } from "../../lib/runs.ts";
import { config, models } from "../../lib/state.ts";
import type { ClassifyAnswer, Mode } from "../../lib/types.ts";
import { labelsTrouble, parseLabels } from "./labels.ts";
import type { Entry } from "./course.ts";
import type { Content, Medium } from "./send.ts";

export type From = "clips" | "pictures" | "files" | "live";

export interface Sample {
  /** What it is called. */
  name: string;
  from: From;
  content: Content;
  /** Names of the files. */
  files: Partial<Record<Medium, string>>;
  truth: string | null;
}

export const from = signal<From>("clips");
export const sample = signal<Sample | null>(null);
/** What is done to the sound and to the picture; null: nothing. */
export const corruption = signal<Record<Medium, Corruption | null>>({ audio: null, image: null });
export const dropped = signal<Record<Medium, boolean>>({ audio: false, image: false });

export const mode = signal<Mode>("auto");
/** Labels that are shown. */
export const top = signal(5);

/** Labels that the person at the page writes, in place of the classifier's. */
export const zeroShot = signal(false);
export const ownLabels = signal("circle, square, triangle, star");
export const template = signal("a picture of a {}");

/** The sample as it is sent. */
export const sent = signal<Content | null>(null);
export const corrupting = signal(false);

export interface Answered {
  answer: ClassifyAnswer | null;
  trouble: string;
  busy: boolean;
}

export const NOTHING: Answered = { answer: null, trouble: "", busy: false };
export const sides = signal<Record<Side, Answered>>({ source: NOTHING, adapted: NOTHING });
/** What the answers that are shown are about. */
export const shown = signal<{ truth: string | null; off: boolean; name: string } | null>(null);
/** Why the sample could not be asked about at all. */
export const trouble = signal("");

export const hasClassifier = computed(() => models.value?.classifier != null);
/** Without a classifier there are only labels as texts. */
export const asTexts = computed(() => zeroShot.value || (models.value !== null && !hasClassifier.value));

export const labelsWrong = computed(() =>
  asTexts.value ? labelsTrouble(parseLabels(ownLabels.value), template.value, config.value?.limits.labels ?? 1000) : "",
);

const ENDINGS: Record<string, string> = { "image/png": "png", "image/jpeg": "jpg", "audio/wav": "wav" };

/** A file's name as it is sent: what was corrupted is another file. */
export function fileName(of: Sample, medium: Medium, uri: string): string {
  const name = of.files[medium] ?? medium;
  if (!corruption.value[medium]) return name;
  const { name: how, severity } = corruption.value[medium];
  return `${name.replace(/\.\w+$/, "")}-${how}-${severity}.${ENDINGS[uri.slice(5, uri.indexOf(";"))] ?? "bin"}`;
}

export interface Sequence {
  kind: "clips" | "live";
  /** Of the samples that it will have; null: until it is stopped. */
  total: number | null;
  answered: number;
  /** The last of them. */
  entries: Entry[];
  over: boolean;
  note: string;
}

export const sequence = signal<Sequence | null>(null);
export const going = computed(() => sequence.value !== null && !sequence.value.over);
/** Shown as long as a sequence waits for the server. */
export const waiting = signal("");
