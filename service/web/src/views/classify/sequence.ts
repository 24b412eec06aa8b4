// Many samples, one after the other, until they end or are stopped.

import { isAbort, patiently, pause } from "../../lib/patience.ts";
import { SIDES } from "../../lib/runs.ts";
import { messageOf } from "../../lib/state.ts";
import type { Clip } from "../../lib/types.ts";
import { answer, askOne, put, stopAsking } from "./ask.ts";
import { CLIPS, clipsStart, listClips, sampleOf } from "./clips.ts";
import { corrupting, sample, sequence, sides, trouble, waiting, type Sample, type Sequence } from "./state.ts";

const MOST_ENTRIES = 600;
let running = new AbortController();

function changed(next: Partial<Sequence>): void {
  if (sequence.value) sequence.value = { ...sequence.value, ...next };
}

export function stopSequence(): void {
  running.abort();
  changed({ over: true });
}

/** So many answers in a row fail before a sequence gives up. */
const MOST_FAILURES = 5;

/** Ask about what `next` brings (null: that is all) until it is stopped. */
export async function follow(
  kind: Sequence["kind"],
  total: number | null,
  next: (place: number, signal: AbortSignal) => Promise<Sample | null>,
): Promise<void> {
  running.abort();
  stopAsking();
  const mine = (running = new AbortController());
  const { signal } = mine;
  sequence.value = { kind, total, answered: 0, entries: [], over: false, note: "" };
  trouble.value = "";
  let failures = 0;
  let note = "";
  try {
    for (let place = 0; ; place++) {
      const one = await next(place, signal);
      if (!one || signal.aborted) break;
      sample.value = one;
      try {
        const entry = await answer(one, signal, (...question) =>
          patiently(
            () => askOne(...question),
            signal,
            (why) => (waiting.value = why),
          ),
        );
        if (!entry) break;
        trouble.value = "";
        failures = SIDES.some((side) => sides.value[side].trouble) ? failures + 1 : 0;
        const before: Sequence = sequence.value!;
        changed({ answered: before.answered + 1, entries: [...before.entries, entry].slice(-MOST_ENTRIES) });
      } catch (error) {
        if (isAbort(error) || signal.aborted) throw error;
        failures++;
        trouble.value = messageOf(error);
        await pause(1000, signal);
      }
      if (failures >= MOST_FAILURES) {
        note = "Stopped: the last answers all failed.";
        break;
      }
    }
  } catch (error) {
    if (!isAbort(error) && !signal.aborted) note = `Stopped: ${messageOf(error)}`;
  } finally {
    // A sequence that came after it has its own.
    if (running === mine) {
      waiting.value = "";
      corrupting.value = false;
      for (const side of SIDES) put(side, { busy: false });
      changed({ over: true, note });
    }
  }
}

const CLIP_MS = 1300;

/** One clip after the other, as fast as they sound. */
export async function playClips(total: number): Promise<void> {
  const first = clipsStart.value;
  let ahead: Clip[] = [];
  let last = 0;
  await follow("clips", total, async (place, signal) => {
    if (place >= total) return null;
    if (place > 0) await pause(Math.max(0, last + CLIP_MS - performance.now()), signal);
    last = performance.now();
    if (ahead.length === 0) ahead = await listClips(first + place, Math.min(CLIPS, total - place), signal);
    return sampleOf(ahead.shift()!);
  });
}
