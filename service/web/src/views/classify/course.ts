// What a sequence of answered samples comes to, for the source model and the stream side by side.

import { percent } from "../../lib/format.ts";

export type Side = "source" | "adapted";
export const SIDES: readonly Side[] = ["source", "adapted"];

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

export interface Verdict extends Record<Side, number> {
  samples: number;
  outcome: "better" | "worse" | "same" | "unclear";
  sentence: string;
}

/**
 * The second half of a run: by then the stream has seen something. A difference counts where it is more than two
 * standard errors of the samples that only one of the two got right.
 */
export function verdict(entries: readonly Entry[]): Verdict | null {
  const counted = entries
    .slice(Math.floor(entries.length / 2))
    .filter((entry) => SIDES.every((side) => right(entry, side) !== null));
  if (counted.length === 0) return null;
  const won = counted.filter((entry) => right(entry, "adapted") && !right(entry, "source")).length;
  const lost = counted.filter((entry) => right(entry, "source") && !right(entry, "adapted")).length;
  const outcome =
    won + lost === 0
      ? "same"
      : Math.abs(won - lost) <= 2 * Math.sqrt(won + lost)
        ? "unclear"
        : won > lost
          ? "better"
          : "worse";
  const source = share(score(counted, "source"))!;
  const adapted = share(score(counted, "adapted"))!;
  const points = `${(Math.abs(adapted - source) * 100).toFixed(1)} points`;
  const ends = {
    better: `${points} more`,
    worse: `${points} less: adaptation did harm here`,
    same: "no difference",
    unclear: "no clear difference: with so few samples it could be chance",
  };
  return {
    samples: counted.length,
    source,
    adapted,
    outcome,
    sentence: `Of the last ${counted.length} samples the source model named ${percent(source)} rightly, the adapted stream ${percent(adapted)}: ${ends[outcome]}.`,
  };
}
