// What a stream adapts with: methods as a list offers them, and which of those a stream has.

import type { Json, StreamCard, Task } from "./types.ts";

/** A method and its settings, as a stream has them. */
export interface Method {
  method: string;
  settings: Record<string, Json>;
}

export interface MethodChoice extends Method {
  value: string;
  label: string;
}

/** Settings of the stream that no choice has. */
export const OWN = "own";

const sorted = (settings: Record<string, Json>): string => JSON.stringify(Object.entries(settings).sort());

export const isChoice = (has: Method, choice: Method): boolean =>
  has.method === choice.method && sorted(has.settings) === sorted(choice.settings);

/** The choice that a stream has; `usual` where it has none yet, OWN where it has none of these. */
export function chosenMethod(has: Method | null, choices: readonly MethodChoice[], usual: string): string {
  if (!has) return usual;
  return choices.find((choice) => isChoice(has, choice))?.value ?? OWN;
}

/** What a stream does a task with; null: it is new to it. */
export const methodOf = (card: StreamCard | undefined, task: Task): Method | null =>
  (task === "classify" ? card?.classify : card) ?? null;

/** A stream's tracks of a task, which has a method of its own. */
export const tracksOf = <T extends { direction: string }>(card: { tracks: T[] } | undefined, task: Task): T[] =>
  (card?.tracks ?? []).filter(({ direction }) => direction.endsWith("->label") === (task === "classify"));

/** Batches whose lessons another method for this task would drop. */
export const learnedBatches = (card: Pick<StreamCard, "tracks"> | undefined, task: Task): number =>
  tracksOf(card, task).reduce((sum, track) => sum + track.batches, 0);
