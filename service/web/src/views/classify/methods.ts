// What a stream can learn to classify with.

import type { MethodChoice } from "../../lib/methods.ts";
import type { Models } from "../../lib/types.ts";

/** Ten times the paper's rate, so that some hundred samples show it. */
export const QUICK = "brimpr:quick";
const QUICK_RATE = 1e-3;

export function methodChoices(classifier: Models["classifier"]): MethodChoice[] {
  return Object.entries(classifier?.methods ?? {}).flatMap(([method, card]) => {
    const plain = { value: method, label: method, method, settings: {} };
    if (method !== "brimpr" || !card.settings.learning_rate) return [plain];
    return [
      plain,
      { value: QUICK, label: `brimpr, fast (rate ${QUICK_RATE})`, method, settings: { learning_rate: QUICK_RATE } },
    ];
  });
}
