// Asking: the query is corrupted, and both sides are asked the same.

import type { Signal } from "@preact/signals";
import { post } from "../../lib/api.ts";
import { corrupted, type Corruption, type Post } from "../../lib/corruptions.ts";
import { isAbort } from "../../lib/patience.ts";
import { pythonCall } from "../../lib/snippets.ts";
import { gallery, messageOf, stream } from "../../lib/state.ts";
import type { Json, Modality, RetrieveAnswer } from "../../lib/types.ts";
import type { Query } from "./send.ts";
import {
  adapted,
  corruption,
  degraded,
  degradeTrouble,
  degrading,
  fileName,
  isCorrupted,
  k,
  kinds,
  mode,
  NOTHING,
  plain,
  shown,
  source,
  target,
  truth,
  type Side,
} from "./state.ts";

let lastDegraded: { key: string; query: Query } | null = null;

async function degrade(query: Query, signal: AbortSignal): Promise<Query> {
  const choice = corruption.value;
  const key = JSON.stringify([query, query.image ? choice.image : null, query.text ? choice.text : null]);
  if (lastDegraded?.key === key) return lastDegraded.query;
  const send: Post = (path, body, signal) => post(path, body, { signal });
  const [made] = await corrupted<Modality>([query], choice, 0, send, signal);
  lastDegraded = { key, query: made! };
  return lastDegraded.query;
}

const PAUSE_MS = 160;
let preview = new AbortController();

/** Show the query as it will be sent, shortly after the last change of it. */
export async function previewSoon(): Promise<boolean> {
  preview.abort();
  const mine = (preview = new AbortController());
  degradeTrouble.value = "";
  if (!isCorrupted.value) {
    degraded.value = null;
    degrading.value = false;
    return true;
  }
  degrading.value = true;
  await new Promise((resolve) => window.setTimeout(resolve, PAUSE_MS));
  if (mine.signal.aborted) return false;
  const clean = plain.value;
  try {
    const query = await degrade(clean, mine.signal);
    if (!mine.signal.aborted) degraded.value = { clean, query };
  } catch (error) {
    if (!isAbort(error) && !mine.signal.aborted) {
      degraded.value = null;
      degradeTrouble.value = messageOf(error);
    }
  } finally {
    if (!mine.signal.aborted) degrading.value = false;
  }
  return !mine.signal.aborted;
}

export function corrupt(kind: Modality, choice: Corruption | null): void {
  corruption.value = { ...corruption.value, [kind]: choice };
  void previewSoon().then((current) => (current && !degradeTrouble.value ? search() : undefined));
}

let controller = new AbortController();

/** Ask the source model and the stream the same; the newest query wins. */
export async function search(): Promise<void> {
  controller.abort();
  if (kinds.value.length === 0 || !gallery.value) {
    source.value = adapted.value = NOTHING;
    shown.value = null;
    return;
  }
  const { signal } = (controller = new AbortController());
  const asked = { truth: truth.value, gallery: gallery.value, mode: mode.value };
  source.value = { ...source.value, busy: true, trouble: "" };
  adapted.value = { ...adapted.value, busy: true, trouble: "" };
  const clean = plain.value;
  let query: Query;
  try {
    query = await degrade(clean, signal);
  } catch (error) {
    if (signal.aborted || isAbort(error)) return;
    const trouble = `The query could not be corrupted: ${messageOf(error)}`;
    source.value = adapted.value = { answer: null, busy: false, trouble };
    return;
  }
  if (signal.aborted) return;
  if (isCorrupted.value) degraded.value = { clean, query };
  const options = { gallery: gallery.value, k: k.value, ...(target.value === "auto" ? {} : { target: target.value }) };
  const off = asked.mode === "off";
  const settle = (side: Signal<Side>) => (next: Side) => {
    if (signal.aborted) return;
    side.value = next;
    shown.value = asked;
  };
  const both = [askOne(query, { ...options, adapt: "off" }, off, signal).then(settle(source))];
  if (off) adapted.value = NOTHING;
  else {
    const named = { ...options, stream: stream.value, adapt: asked.mode };
    both.push(askOne(query, named, true, signal).then(settle(adapted)));
  }
  await Promise.all(both);
}

/** One side's answer, or its trouble. `remember`: as the call to be copied. */
async function askOne(
  query: Query,
  named: Record<string, Json>,
  remember: boolean,
  signal: AbortSignal,
): Promise<Side> {
  const body = { queries: [query as Json], ...named };
  try {
    const answer = await post<RetrieveAnswer>("/retrieve", body, { signal, ...(remember && told(query, named)) });
    return { answer, trouble: "", busy: false };
  } catch (error) {
    return { answer: null, trouble: isAbort(error) ? "" : messageOf(error), busy: false };
  }
}

/** For "copy as": the query as a file where it is a picture, and the client's own words. */
function told(query: Query, named: Record<string, Json>) {
  const file = fileName();
  const asked =
    query.image === undefined
      ? query.text!
      : { ...(query.text === undefined ? {} : { text: query.text }), image: file };
  const python = `answer = ${pythonCall("client.retrieve", [asked], named)}\nfor hit in answer.hits:\n    print(f"{hit.score:.3f}", hit.id, hit.payload)`;
  return { remember: true, python, ...(query.image === undefined ? {} : { files: [file] }) };
}
