// What a stream can adapt with: methods, their presets, and one choice for short runs.

import type { MethodChoice } from "../../lib/methods.ts";
import type { Models } from "../../lib/types.ts";

/** Learns ten times as fast as the paper from batches that are shifted, so that some hundred queries show it. */
export const QUICK = "tcr:quick";
const QUICK_SETTINGS = { preset: "attune", shifted_learning_rate: 3e-3 };

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
