import { useState } from "preact/hooks";
import { ApiError, get, part, put } from "../lib/api.ts";
import { chosenMethod, isChoice, learnedBatches, methodOf, OWN, type MethodChoice } from "../lib/methods.ts";
import { pythonCall } from "../lib/snippets.ts";
import { models, say, show, stream, streams, tell } from "../lib/state.ts";
import type { StreamCard, Task } from "../lib/types.ts";
import { confirmed } from "./dialog.tsx";
import { Select } from "./fields.tsx";

const usualOf = (task: Task): string =>
  (task === "classify" ? models.value?.classifier?.default_method : models.value?.default_method) ?? "";

/** The stream as it is now, of which the page may hear a second later; undefined: there is none of that name yet. */
async function described(name: string, signal?: AbortSignal): Promise<StreamCard | undefined> {
  try {
    return await get<StreamCard>(`/admin/streams/${part(name)}`, { signal });
  } catch (error) {
    if (error instanceof ApiError && error.status === 404) return undefined;
    throw error;
  }
}

/** Give a stream a method; asks first where that drops something. False: it was not done. */
export async function changeMethod(
  name: string,
  task: Task,
  choice: MethodChoice,
  signal?: AbortSignal,
): Promise<boolean> {
  const card = await described(name, signal);
  const has = methodOf(card, task);
  if (has && isChoice(has, choice)) return true;
  const batches = learnedBatches(card, task);
  // Other settings of the same method keep what was learned.
  if (batches > 0 && (has?.method ?? usualOf(task)) !== choice.method) {
    const text = `Stream "${name}" has learned from ${batches} ${batches === 1 ? "batch" : "batches"}. With another method it starts again from the source model.`;
    if (!(await confirmed("Drop what was learned?", text, "Change the method"))) return false;
  }
  const body = { method: choice.method, task, settings: choice.settings };
  const python = pythonCall("client.configure_stream", [name], body);
  show(await put<StreamCard>(`/admin/streams/${part(name)}`, body, { remember: true, python, signal }));
  return true;
}

/** The method of the stream that the views have in common. `changed`: what follows once it has another. */
export function MethodSelect(props: {
  task: Task;
  choices: readonly MethodChoice[];
  changed?: (() => void) | undefined;
}) {
  const { task, choices } = props;
  /** What was chosen, until the server has it or the person would rather not. */
  const [wanted, setWanted] = useState<string | null>(null);
  const has = methodOf(streams.value.get(stream.value), task);
  const chosen = chosenMethod(has, choices, usualOf(task));
  const shown = chosen === OWN ? [...choices, { value: OWN, label: `${has!.method}, own settings` }] : choices;
  const change = async (value: string) => {
    const choice = choices.find((one) => one.value === value);
    if (!choice || wanted !== null) return;
    setWanted(value);
    await tell(async () => {
      if (!(await changeMethod(stream.value, task, choice))) return;
      say(`Stream ${stream.value} ${task === "classify" ? "classifies" : "adapts"} with ${choice.label} now`);
      props.changed?.();
    });
    setWanted(null);
  };
  return <Select label="Its method" value={wanted ?? chosen} choices={shown} change={(value) => void change(value)} />;
}
