// What a stream can adapt with: methods, their presets, and one choice for short runs.

import type { Json, Models, StreamCard } from "../../lib/types.ts";

export interface MethodChoice {
  value: string;
  label: string;
  method: string;
  settings: Record<string, Json>;
}

/** Learns ten times as fast as the paper from batches that are shifted, so that some hundred queries show it. */
export const QUICK = "tcr:quick";
const QUICK_SETTINGS = { preset: "attune", shifted_learning_rate: 3e-3 };
/** Settings of the stream that no choice has. */
export const OWN = "own";

export function methodChoices(models: Models | null): MethodChoice[] {
  const choices: MethodChoice[] = [];
  for (const [method, card] of Object.entries(models?.methods ?? {})) {
    choices.push({ value: method, label: method, method, settings: {} });
    for (const [preset, settings] of Object.entries(card.presets)) {
      if (Object.keys(settings).length === 0) continue;
      choices.push({ value: `${method}:${preset}`, label: `${method}, ${preset}`, method, settings: { preset } });
    }
    if (method === "tcr" && card.presets.attune && card.settings.shifted_learning_rate) {
      choices.push({ value: QUICK, label: "tcr, attune, fast rate", method, settings: QUICK_SETTINGS });
    }
  }
  return choices;
}

/** The choice that a stream has; null where it is not known, OWN where it is none of these. */
export function chosenMethod(
  card: Pick<StreamCard, "method" | "settings"> | undefined,
  choices: readonly MethodChoice[],
): string | null {
  if (!card) return null;
  const same = choices.find(
    (choice) => choice.method === card.method && sorted(choice.settings) === sorted(card.settings),
  );
  return same?.value ?? OWN;
}

const sorted = (settings: Record<string, Json>): string => JSON.stringify(Object.entries(settings).sort());

/** Batches whose lessons another method for retrieval would drop; the classifier has a method of its own. */
export function learnedBatches(card: StreamCard | undefined): number {
  const tracks = (card?.tracks ?? []).filter((track) => !track.direction.endsWith("->label"));
  return tracks.reduce((sum, track) => sum + track.batches, 0);
}
