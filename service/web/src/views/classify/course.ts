// What a sequence of answered samples comes to, for the source model and the stream side by side.

import { percent } from "../../lib/format.ts";
import { compared, difference, laterHalf, SIDES, type Compared, type Side } from "../../lib/runs.ts";

/** What a model says first, and how unsure it is. */
export interface Said {
  label: string;
  entropy: number;
}

export interface Entry extends Record<Side, Said | null> {
  truth: string | null;
}

/** Whether the first label was right; null: the truth, or the answer, is not known. */
export const right = (entry: Entry, side: Side): boolean | null =>
  entry.truth === null || entry[side] === null ? null : entry[side].label === entry.truth;

export interface Score {
  right: number;
  of: number;
}

export function score(entries: readonly Entry[], side: Side): Score {
  const known = entries.map((entry) => right(entry, side)).filter((one) => one !== null);
  return { right: known.filter(Boolean).length, of: known.length };
}

export const share = ({ right, of }: Score): number | null => (of === 0 ? null : right / of);

/** At the end of each part, the share of right ones among the last `window` samples; parts end before `ends`. */
export function movingAccuracy(
  entries: readonly Entry[],
  side: Side,
  ends: readonly number[],
  window: number,
): (number | null)[] {
  return ends.map((end) => share(score(entries.slice(Math.max(0, end - window), end), side)));
}

/** Mean entropy of each part. */
export function entropies(entries: readonly Entry[], side: Side, ends: readonly number[]): (number | null)[] {
  return ends.map((end, place) => {
    const known = entries
      .slice(ends[place - 1] ?? 0, end)
      .flatMap((entry) => (entry[side] ? [entry[side].entropy] : []));
    return known.length === 0 ? null : known.reduce((sum, value) => sum + value, 0) / known.length;
  });
}

/** What the second half of a run says, of the samples that both sides answered; null without one. */
export function verdict(entries: readonly Entry[]): (Compared & { sentence: string }) | null {
  const known = laterHalf(entries).filter((entry) => SIDES.every((side) => right(entry, side) !== null));
  const made = compared(known.map((entry) => ({ source: right(entry, "source")!, adapted: right(entry, "adapted")! })));
  if (!made) return null;
  const sides = `the source model named ${percent(made.source)} rightly, the adapted stream ${percent(made.adapted)}`;
  return { ...made, sentence: `Of the last ${made.queries} samples ${sides}: ${difference(made, "samples")}.` };
}
