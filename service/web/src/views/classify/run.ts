// The run that the page sends of demo clips.

import { signal } from "@preact/signals";
import { changeMethod } from "../../components/method-select.tsx";
import { post } from "../../lib/api.ts";
import type { Corruption } from "../../lib/corruptions.ts";
import type { MethodChoice } from "../../lib/methods.ts";
import { fetchedOnce } from "../../lib/patience.ts";
import { Runner, type Run } from "../../lib/runner.ts";
import { slug } from "../../lib/runs.ts";
import { stream } from "../../lib/state.ts";
import type { Clip } from "../../lib/types.ts";
import { choose } from "./choose.ts";
import { contentOf, listClips, sampleOf } from "./clips.ts";
import { QUICK } from "./methods.ts";
import { MEDIA, send, type Batch, type Content, type Medium, type Plan } from "./send.ts";
import { corruption, dropped, from, mode, zeroShot } from "./state.ts";

/** Of what was measured on the demo clips, the clearest recovery within some hundred of them. */
export const planned = signal<Record<Medium, Corruption | null>>({ audio: { name: "rain", severity: 5 }, image: null });
export const runner = new Runner<Plan, Batch>({ queries: 256, batchSize: 16, method: QUICK });

const SEED = 1;
const filesOf = fetchedOnce<Clip, Content>(contentOf, (clip) => clip.id);

/** What the stream of a run is named after. */
export const baseName = (how: Plan["corruption"]): string =>
  MEDIA.flatMap((medium) => (how[medium] ? [slug(how[medium])] : [])).join("-") || "clean-clips";

export function start(choice: MethodChoice): Promise<void> {
  const plan: Plan = {
    stream: runner.nameOf(baseName(planned.value)),
    corruption: planned.value,
    queries: runner.queries.value,
    batch: runner.batchSize.value,
    seed: SEED,
  };
  const prepare = async (signal: AbortSignal) => {
    if (!(await changeMethod(plan.stream, "classify", choice, signal))) return null;
    return send(
      plan,
      {
        clips: listClips,
        content: filesOf,
        post: (path, body, signal) => post(path, body, { signal }),
        waiting: runner.waiting,
      },
      signal,
    );
  };
  // Of earlier batches nobody looks at the files again.
  return runner.start(plan, choice.label, prepare, (before) => ({ ...before, contents: [] }));
}

/** The clip that shows the difference best: the last that the stream got right and the source did not, else the last. */
function telling(batches: readonly Batch[]): Clip | undefined {
  for (const { clips, entries } of batches.toReversed()) {
    const place = entries.findIndex(
      ({ truth, source, adapted }) => adapted?.label === truth && source?.label !== truth,
    );
    if (place >= 0) return clips[place];
  }
  return batches.at(-1)?.clips.at(-1);
}

/** Ask about one of the run's clips, corrupted as the run was, with what its stream learned. */
export async function tryOne({ plan, batches }: Run<Plan, Batch>): Promise<void> {
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
