// The run that the page sends; it goes on while other views are shown.

import { signal } from "@preact/signals";
import { post } from "../../lib/api.ts";
import { messageOf, models, stream, streams } from "../../lib/state.ts";
import type { Clip } from "../../lib/types.ts";
import { configure, QUICK, type MethodChoice } from "./methods.ts";
import {
  freshName,
  send,
  type Asks,
  type Batch,
  type Content,
  type Corruption,
  type Medium,
  type Plan,
} from "./run.ts";
import { choose, contentOf, corruption, dropped, from, listClips, mode, sampleOf, zeroShot } from "./state.ts";

/** Of what was measured on the demo clips, the clearest recovery within some hundred of them. */
export const planned = signal<Record<Medium, Corruption | null>>({ audio: { name: "rain", severity: 5 }, image: null });
export const samples = signal(256);
export const batchSize = signal(16);
export const method = signal(QUICK);
/** "": one that is new. */
export const ownName = signal("");

export interface Run {
  phase: "running" | "done" | "stopped" | "failed";
  plan: Plan;
  method: string;
  batches: Batch[];
  waiting: string;
  trouble: string;
}

export const run = signal<Run | null>(null);
export const starting = signal(false);
export const startTrouble = signal("");

const SEED = 1;
const used = new Set<string>();
let controller = new AbortController();

export const nameOf = (): string =>
  ownName.value || freshName(planned.value, new Set([...used, ...streams.value.keys()]));

const contents = new Map<string, Promise<Content>>();

/** A clip's files, fetched once. */
function held(clip: Clip): Promise<Content> {
  let found = contents.get(clip.id);
  if (!found) {
    found = contentOf(clip);
    found.catch(() => contents.delete(clip.id));
    contents.set(clip.id, found);
  }
  return found;
}

function change(next: Partial<Run>): void {
  if (run.value) run.value = { ...run.value, ...next };
}

export function stop(): void {
  controller.abort();
}

export async function start(name: string, choice: MethodChoice): Promise<void> {
  controller.abort();
  const mine = (controller = new AbortController());
  const { signal } = mine;
  const plan: Plan = {
    stream: name,
    corruption: planned.value,
    samples: samples.value,
    batch: batchSize.value,
    seed: SEED,
  };
  starting.value = true;
  startTrouble.value = "";
  try {
    if (!(await configure(name, choice, models.value?.classifier?.default_method ?? "", signal))) return;
  } catch (error) {
    if (!signal.aborted) startTrouble.value = messageOf(error);
    return;
  } finally {
    starting.value = false;
  }
  used.add(name);
  ownName.value = "";
  run.value = { phase: "running", plan, method: choice.label, batches: [], waiting: "", trouble: "" };
  await follow(plan, signal);
}

async function follow(plan: Plan, signal: AbortSignal): Promise<void> {
  const asks: Asks = {
    clips: listClips,
    content: held,
    post: (path, body, signal) => post(path, body, { signal }),
    waiting: (why) => change({ waiting: why }),
  };
  try {
    for await (const batch of send(plan, asks, signal)) {
      if (signal.aborted) break;
      // Of earlier batches nobody looks at the files again.
      const before = (run.value?.batches ?? []).map((one) => ({ ...one, contents: [] }));
      change({ batches: [...before, batch] });
    }
    change({ phase: signal.aborted ? "stopped" : "done", waiting: "" });
  } catch (error) {
    change({
      phase: signal.aborted ? "stopped" : "failed",
      trouble: signal.aborted ? "" : messageOf(error),
      waiting: "",
    });
  }
}

/** The clip that shows the difference best: the last that the stream got right and the source did not, else the last. */
export function telling(batches: readonly Batch[]): Clip | undefined {
  for (const { clips, entries } of batches.toReversed()) {
    const place = entries.findIndex(
      ({ truth, source, adapted }) => adapted?.label === truth && source?.label !== truth,
    );
    if (place >= 0) return clips[place];
  }
  return batches.at(-1)?.clips.at(-1);
}

/** Ask about one of the run's clips, corrupted as the run was, with what its stream learned. */
export async function tryOne({ plan, batches }: Run): Promise<void> {
  const clip = telling(batches);
  if (!clip) return;
  const one = await sampleOf(clip);
  stream.value = plan.stream;
  mode.value = "async";
  zeroShot.value = false;
  corruption.value = plan.corruption;
  dropped.value = { audio: false, image: false };
  from.value = "clips";
  choose(one);
}
