// Asking both models about one sample.

import { post } from "../../lib/api.ts";
import { corrupted, type Post } from "../../lib/corruptions.ts";
import { isAbort, pause } from "../../lib/patience.ts";
import { pythonCall } from "../../lib/snippets.ts";
import { SIDES, type Side } from "../../lib/runs.ts";
import { messageOf, models, stream } from "../../lib/state.ts";
import type { ClassifyAnswer, Json, Mode } from "../../lib/types.ts";
import type { Entry } from "./course.ts";
import { parseLabels } from "./labels.ts";
import { MEDIA, said, type Content, type Medium } from "./send.ts";
import {
  asTexts,
  corrupting,
  corruption,
  dropped,
  fileName,
  going,
  labelsWrong,
  mode,
  NOTHING,
  ownLabels,
  sample,
  sent,
  shown,
  sides,
  template,
  trouble,
  type Answered,
  type Sample,
} from "./state.ts";

/** What of a sample goes out: without what is left out, and without sound where labels are texts. */
function kept(content: Content, without: Record<Medium, boolean>, pictureOnly: boolean): Content {
  const made: Content = {};
  if (content.audio !== undefined && !without.audio && !pictureOnly) made.audio = content.audio;
  if (content.image !== undefined && !without.image) made.image = content.image;
  return made;
}

function nothingLeft(): string {
  if (asTexts.value)
    return "Labels of your own are found in pictures alone, and this sample has no picture that is sent.";
  return "Sound and picture are both left out, so there is nothing to ask about.";
}

const send: Post = (path, body, signal) => post(path, body, { signal });

let lastMade: { key: string; content: Content } | null = null;

/** As the server corrupts it; the one before is remembered. */
async function made(clean: Content, signal: AbortSignal): Promise<Content> {
  if (MEDIA.every((medium) => clean[medium] === undefined || !corruption.value[medium])) return clean;
  const key = JSON.stringify([clean, corruption.value]);
  if (lastMade?.key !== key) {
    const [content] = await corrupted<Medium>([clean], corruption.value, 0, send, signal);
    lastMade = { key, content: content! };
  }
  return lastMade.content;
}

const MOST_SHOWN = 10;

function bodyOf(content: Content, adapt: Mode): { [name: string]: Json } {
  const labels = asTexts.value ? parseLabels(ownLabels.value) : [];
  const known = labels.length || (models.value?.classifier?.labels.length ?? MOST_SHOWN);
  const body: { [name: string]: Json } = {
    samples: { ...content },
    stream: stream.value,
    adapt,
    top: Math.min(1000, Math.max(known, 1)),
  };
  if (labels.length > 0) {
    body.labels = labels;
    body.template = template.value;
  }
  return body;
}

/** Ask one model. `remember`: as the call to be copied. */
export async function askOne(side: Side, of: Sample, content: Content, signal: AbortSignal): Promise<ClassifyAnswer> {
  const body = bodyOf(content, side === "source" ? "off" : mode.value);
  const named = MEDIA.flatMap((medium) =>
    content[medium] === undefined ? [] : [[medium, fileName(of, medium, content[medium])] as const],
  );
  const { samples: _, ...options } = body;
  const python = `answer = ${pythonCall("client.classify", [], { ...Object.fromEntries(named), ...options })}\nfor label in answer.results[0].labels:\n    print(label)`;
  const remember = side === "adapted" || mode.value === "off";
  return post<ClassifyAnswer>("/classify", body, { signal, remember, files: named.map(([, name]) => name), python });
}

export function put(side: Side, next: Partial<Answered>): void {
  sides.value = { ...sides.value, [side]: { ...sides.value[side], ...next } };
}

/** Ask both models about a sample; null where it was overtaken. Raises what says that no model could answer. */
export async function answer(of: Sample, signal: AbortSignal, ask: typeof askOne): Promise<Entry | null> {
  const clean = kept(of.content, dropped.value, asTexts.value);
  if (MEDIA.every((medium) => clean[medium] === undefined)) throw new Error(nothingLeft());
  if (labelsWrong.value) throw new Error(labelsWrong.value);
  const off = mode.value === "off";
  const asked = off ? (["source"] as const) : SIDES;
  corrupting.value = true;
  let content: Content;
  try {
    content = await made(clean, signal);
  } finally {
    if (!signal.aborted) corrupting.value = false;
  }
  if (signal.aborted) return null;
  sent.value = content;
  for (const side of SIDES) put(side, asked.includes(side as never) ? { busy: true } : NOTHING);
  const about = { truth: asTexts.value ? null : of.truth, off, name: of.name };
  const entry: Entry = { truth: about.truth, source: null, adapted: null };
  const answers = await Promise.all(
    asked.map(async (side): Promise<[Side, Answered]> => {
      try {
        const answer = await ask(side, of, content, signal);
        entry[side] = said(answer);
        return [side, { answer, trouble: "", busy: false }];
      } catch (error) {
        if (isAbort(error) || signal.aborted) throw error;
        return [side, { answer: null, trouble: messageOf(error), busy: false }];
      }
    }),
  );
  if (signal.aborted) return null;
  // Both at once, so that no bar moves before the other.
  sides.value = { source: NOTHING, adapted: NOTHING, ...Object.fromEntries(answers) };
  shown.value = about;
  return entry;
}

let asking = new AbortController();
const PAUSE_MS = 160;

/** Ask about the chosen sample; the newest question wins. Nothing while a sequence goes: its next sample sees the change. */
export async function askSoon(): Promise<void> {
  if (going.value) return;
  asking.abort();
  const mine = (asking = new AbortController());
  const chosen = sample.value;
  trouble.value = "";
  if (!chosen) return;
  try {
    await pause(PAUSE_MS, mine.signal);
    await answer(chosen, mine.signal, askOne);
  } catch (error) {
    if (isAbort(error) || mine.signal.aborted) return;
    clear();
    trouble.value = messageOf(error);
  }
}

/** Ask nothing, and show no answer. */
export function forgetAnswer(): void {
  stopAsking();
  clear();
  trouble.value = "";
}

export function stopAsking(): void {
  asking.abort();
}

function clear(): void {
  sides.value = { source: NOTHING, adapted: NOTHING };
  shown.value = null;
  sent.value = null;
}
