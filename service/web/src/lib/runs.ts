// A run: a bounded stream of corrupted queries of which the truth is known, sent to the source model and to a stream
// side by side. What is said of it, whatever its queries are.

import type { Corruption } from "./corruptions.ts";

export type Side = "source" | "adapted";
export const SIDES: readonly Side[] = ["source", "adapted"];

/** Share of queries that each side got right, 0 to 1. */
export interface Compared extends Record<Side, number> {
  queries: number;
  outcome: "better" | "worse" | "same" | "unclear";
}

/**
 * Which side was right more often; null without queries. A difference counts where it is more than two standard
 * errors of the queries that only one of the two got right.
 */
export function compared(answers: readonly Record<Side, boolean>[]): Compared | null {
  if (answers.length === 0) return null;
  const number = (of: (answer: Record<Side, boolean>) => boolean) => answers.filter(of).length;
  const won = number(({ source, adapted }) => adapted && !source);
  const lost = number(({ source, adapted }) => source && !adapted);
  return {
    queries: answers.length,
    source: number(({ source }) => source) / answers.length,
    adapted: number(({ adapted }) => adapted) / answers.length,
    outcome: outcomeOf(won, lost),
  };
}

function outcomeOf(won: number, lost: number): Compared["outcome"] {
  if (won + lost === 0) return "same";
  if (Math.abs(won - lost) <= 2 * Math.sqrt(won + lost)) return "unclear";
  return won > lost ? "better" : "worse";
}

/** The difference in words; `queries`: what they are called. */
export function difference({ source, adapted, outcome }: Compared, queries: string): string {
  const points = `${(Math.abs(adapted - source) * 100).toFixed(1)} points`;
  const ends = {
    better: `${points} more`,
    worse: `${points} less: adaptation did harm here`,
    same: "no difference",
    unclear: `no clear difference: with so few ${queries} it could be chance`,
  };
  return ends[outcome];
}

/** The second half: by then the stream has seen something. */
export const laterHalf = <T>(all: readonly T[]): T[] => all.slice(Math.floor(all.length / 2));

/** How many batches the stream learned from; empty without batches. */
export function learnedFrom(batches: readonly { status: string; reason: string }[]): string {
  if (batches.length === 0) return "";
  const not = batches.filter(({ status }) => status === "skipped" || status === "undone" || status === "off");
  const why = not.at(-1)?.reason;
  return `Learned from ${batches.length - not.length} of ${batches.length} batches${why ? `; last skipped: ${why}` : ""}.`;
}

/** A corruption as part of a stream's name: `motion-blur-5`. */
export const slug = ({ name, severity }: Corruption): string => `${name.replaceAll("_", "-")}-${severity}`;

/** A stream's name that is not among `taken`: `fog-5`, else `fog-5-2` and so on. */
export function freshName(base: string, taken: ReadonlySet<string>): string {
  for (let number = 1; ; number++) {
    const name = number === 1 ? base : `${base}-${number}`;
    if (!taken.has(name)) return name;
  }
}

/** A line for each side, in its colour. */
export const bothSides = (of: (side: Side) => (number | null)[], sides: readonly Side[] = SIDES) =>
  sides.map((side) => ({ label: side, values: of(side), colour: side }));

/** Where batches were undone, as a plot marks it; `x`: queries sent by the end of each. */
export const takenBack = (batches: readonly { status: string }[], x: readonly number[]) =>
  batches.flatMap(({ status }, place) =>
    status === "undone" ? [{ at: x[place]!, label: "taken back", colour: "bad" }] : [],
  );
