// What a stream can learn to classify with, and how it is told to.

import { confirmed } from "../../components/dialog.tsx";
import { ApiError, get, part, put } from "../../lib/api.ts";
import { pythonCall } from "../../lib/snippets.ts";
import { show } from "../../lib/state.ts";
import type { Json, Models, StreamCard } from "../../lib/types.ts";

export interface MethodChoice {
  value: string;
  label: string;
  method: string;
  settings: Record<string, Json>;
}

/** Ten times the paper's rate, so that some hundred samples show it. */
export const QUICK = "brimpr:quick";
const QUICK_RATE = 1e-3;
/** Settings of the stream that no choice has. */
export const OWN = "own";

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

const sorted = (settings: Record<string, Json>): string => JSON.stringify(Object.entries(settings).sort());

/** The choice that a stream has; `usual` where the stream is new, OWN where it is none of these. */
export function chosenMethod(
  card: Pick<StreamCard, "classify"> | undefined,
  choices: readonly MethodChoice[],
  usual: string,
): string {
  const has = card?.classify;
  if (!has) return usual;
  return (
    choices.find((choice) => choice.method === has.method && sorted(choice.settings) === sorted(has.settings))?.value ??
    OWN
  );
}

const CLASSIFIED = "audio+video->label";

/** Batches of the classifier that another method would drop. */
export const learned = (card: Pick<StreamCard, "tracks"> | undefined): number =>
  (card?.tracks ?? []).filter((track) => track.direction === CLASSIFIED).reduce((sum, track) => sum + track.batches, 0);

/** The stream as it is now, which the page may hear of a second later; undefined: there is none of that name yet. */
async function describe(name: string, signal?: AbortSignal): Promise<StreamCard | undefined> {
  try {
    return await get<StreamCard>(`/admin/streams/${part(name)}`, { signal });
  } catch (error) {
    if (error instanceof ApiError && error.status === 404) return undefined;
    throw error;
  }
}

/** Give a stream a method; asks first where that drops something. False: it was not done. */
export async function configure(
  name: string,
  choice: MethodChoice,
  usual: string,
  signal?: AbortSignal,
): Promise<boolean> {
  const card = await describe(name, signal);
  if (card?.classify && chosenMethod(card, [choice], OWN) === choice.value) return true;
  const batches = learned(card);
  // Other settings of the same method keep what was learned.
  if (batches > 0 && (card?.classify?.method ?? usual) !== choice.method) {
    const text = `Stream "${name}" has learned from ${batches} ${batches === 1 ? "batch" : "batches"} of samples. With another method it starts again from the source model.`;
    if (!(await confirmed("Drop what was learned?", text, "Change the method"))) return false;
  }
  const body = { method: choice.method, task: "classify", settings: choice.settings };
  const python = pythonCall("client.configure_stream", [name], body);
  show(await put<StreamCard>(`/admin/streams/${part(name)}`, body, { remember: true, python, signal }));
  return true;
}
