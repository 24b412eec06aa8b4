import { useState } from "preact/hooks";
import { confirmed } from "../../components/dialog.tsx";
import { Select } from "../../components/fields.tsx";
import { ApiError, get, part, put } from "../../lib/api.ts";
import { pythonCall } from "../../lib/snippets.ts";
import { models, say, show, stream, streams, tell } from "../../lib/state.ts";
import type { StreamCard } from "../../lib/types.ts";
import { chosenMethod, learnedBatches, methodChoices, OWN, type MethodChoice } from "./methods.ts";
import { search } from "./state.ts";

/** Give a stream another method; asks first where that drops something. False: it was not done. */
export async function configure(name: string, choice: MethodChoice, signal?: AbortSignal): Promise<boolean> {
  const card = await described(name, signal);
  if (chosenMethod(card, [choice]) === choice.value) return true;
  const batches = learnedBatches(card);
  if (batches > 0) {
    const text = `Stream "${name}" has seen ${batches === 1 ? "a batch" : `${batches} batches`} of queries. With another method or other settings it starts again from the source model.`;
    if (!(await confirmed("Drop what was learned?", text, "Change the method"))) return false;
  }
  const body = { method: choice.method, settings: choice.settings };
  const python = pythonCall("client.configure_stream", [name], body);
  show(await put<StreamCard>(`/admin/streams/${part(name)}`, body, { remember: true, python, signal }));
  return true;
}

/** As it is now: what the page shows may be a second old. */
async function described(name: string, signal?: AbortSignal): Promise<StreamCard | undefined> {
  try {
    return await get<StreamCard>(`/admin/streams/${part(name)}`, { signal });
  } catch (error) {
    if (error instanceof ApiError && error.status === 404) return undefined;
    throw error;
  }
}

/** The method of the stream that is searched with. */
export function MethodSelect() {
  /** What was chosen, until the server has it or the person would rather not. */
  const [wanted, setWanted] = useState<string | null>(null);
  const choices = methodChoices(models.value);
  const card = streams.value.get(stream.value);
  const usual = models.value?.default_method ?? "";
  const chosen = chosenMethod(card, choices) ?? usual;
  const shown = chosen === OWN ? [...choices, { value: OWN, label: `${card!.method}, own settings` }] : choices;
  const change = async (value: string) => {
    const choice = choices.find((one) => one.value === value);
    if (!choice || wanted !== null) return;
    setWanted(value);
    await tell(async () => {
      if (!(await configure(stream.value, choice))) return;
      say(`Stream ${stream.value} adapts with ${choice.label} now`);
      void search();
    });
    setWanted(null);
  };
  return <Select label="Its method" value={wanted ?? chosen} choices={shown} change={(value) => void change(value)} />;
}
