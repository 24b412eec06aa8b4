// What the view holds while the page lives: the sample, what is done to it, and what both models say.

import { computed, signal } from "@preact/signals";
import { get, part, post } from "../../lib/api.ts";
import { patiently, pause } from "../../lib/patience.ts";
import { loadPicture as load, dataUri } from "../../lib/pictures.ts";
import { pythonCall } from "../../lib/snippets.ts";
import { config, gallery, messageOf, models, stream } from "../../lib/state.ts";
import type { ClassifyAnswer, Clip, Corruptions, Item, ItemPage, Json, Mode } from "../../lib/types.ts";
import { SIDES, type Entry, type Side } from "./course.ts";
import { Capture, type Wanted } from "./devices.ts";
import { labelsTrouble, parseLabels } from "./labels.ts";
import { corrupted, MEDIA, said, type Content, type Corruption, type Medium } from "./run.ts";
import { heardSeconds } from "./sound.ts";

export type From = "clips" | "pictures" | "files" | "live";

export interface Sample {
  /** What it is called. */
  name: string;
  from: From;
  content: Content;
  /** Names of the files. */
  files: Partial<Record<Medium, string>>;
  truth: string | null;
}

export const from = signal<From>("clips");
export const sample = signal<Sample | null>(null);
/** What is done to the sound and to the picture; null: nothing. */
export const corruption = signal<Record<Medium, Corruption | null>>({ audio: null, image: null });
export const dropped = signal<Record<Medium, boolean>>({ audio: false, image: false });
export const corruptions = signal<Corruptions | null>(null);
export const corruptionsTrouble = signal("");

export const mode = signal<Mode>("auto");
/** Labels that are shown. */
export const top = signal(5);

/** Labels that the person at the page writes, in place of the classifier's. */
export const zeroShot = signal(false);
export const ownLabels = signal("circle, square, triangle, star");
export const template = signal("a picture of a {}");

/** The sample as it is sent. */
export const sent = signal<Content | null>(null);
export const corrupting = signal(false);

export interface Answered {
  answer: ClassifyAnswer | null;
  trouble: string;
  busy: boolean;
}

const NOTHING: Answered = { answer: null, trouble: "", busy: false };
export const sides = signal<Record<Side, Answered>>({ source: NOTHING, adapted: NOTHING });
/** What the answers that are shown are about. */
export const shown = signal<{ truth: string | null; off: boolean; name: string } | null>(null);
/** Why the sample could not be asked about at all. */
export const trouble = signal("");

const isAbort = (error: unknown): boolean => error instanceof DOMException && error.name === "AbortError";

export const hasClassifier = computed(() => models.value?.classifier != null);
/** Without a classifier there are only labels as texts. */
export const asTexts = computed(() => zeroShot.value || (models.value !== null && !hasClassifier.value));

export const labelsWrong = computed(() =>
  asTexts.value ? labelsTrouble(parseLabels(ownLabels.value), template.value, config.value?.limits.labels ?? 1000) : "",
);

export async function loadCorruptions(): Promise<void> {
  try {
    corruptions.value = await get<Corruptions>("/corruptions");
    corruptionsTrouble.value = "";
  } catch (error) {
    corruptionsTrouble.value = messageOf(error);
  }
}

// One sample -------------------------------------------------------------------------------------------------------

/** What of a sample goes out: without what is left out, and without sound where labels are texts. */
export function kept(content: Content, without: Record<Medium, boolean>, pictureOnly: boolean): Content {
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

let lastMade: { key: string; content: Content } | null = null;

/** As the server corrupts it; the one before is remembered. */
async function made(clean: Content, signal: AbortSignal): Promise<Content> {
  if (MEDIA.every((medium) => clean[medium] === undefined || !corruption.value[medium])) return clean;
  const key = JSON.stringify([clean, corruption.value]);
  if (lastMade?.key !== key) {
    const [content] = await corrupted(
      [clean],
      corruption.value,
      0,
      (path, body, signal) => post(path, body, { signal }),
      signal,
    );
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

const ENDINGS: Record<string, string> = { "image/png": "png", "image/jpeg": "jpg", "audio/wav": "wav" };

/** A file's name as it is sent: what was corrupted is another file. */
export function fileName(of: Sample, medium: Medium, uri: string): string {
  const name = of.files[medium] ?? medium;
  if (!corruption.value[medium]) return name;
  const { name: how, severity } = corruption.value[medium];
  return `${name.replace(/\.\w+$/, "")}-${how}-${severity}.${ENDINGS[uri.slice(5, uri.indexOf(";"))] ?? "bin"}`;
}

/** Ask one model. `remember`: as the call to be copied. */
async function askOne(side: Side, of: Sample, content: Content, signal: AbortSignal): Promise<ClassifyAnswer> {
  const body = bodyOf(content, side === "source" ? "off" : mode.value);
  const named = MEDIA.flatMap((medium) =>
    content[medium] === undefined ? [] : [[medium, fileName(of, medium, content[medium])] as const],
  );
  const { samples: _, ...options } = body;
  const python = `answer = ${pythonCall("client.classify", [], { ...Object.fromEntries(named), ...options })}\nfor label in answer.results[0].labels:\n    print(label)`;
  const remember = side === "adapted" || mode.value === "off";
  return post<ClassifyAnswer>("/classify", body, { signal, remember, files: named.map(([, name]) => name), python });
}

function put(side: Side, next: Partial<Answered>): void {
  sides.value = { ...sides.value, [side]: { ...sides.value[side], ...next } };
}

/** Ask both models about a sample; null where it was overtaken. Raises what says that no model could answer. */
async function answer(of: Sample, signal: AbortSignal, ask: typeof askOne): Promise<Entry | null> {
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

function clear(): void {
  sides.value = { source: NOTHING, adapted: NOTHING };
  shown.value = null;
  sent.value = null;
}

/** The person's labels in place of the classifier's, or back; a clip or a gallery's picture is of no use to the other. */
export function useOwnLabels(own: boolean): void {
  zeroShot.value = own;
  if (sample.value?.from === (own ? "clips" : "pictures")) choose(null);
  else void askSoon();
}

/** Take another sample, and ask. */
export function choose(next: Sample | null): void {
  stopSequence();
  sample.value = next;
  if (next) void askSoon();
  else {
    asking.abort();
    clear();
    trouble.value = "";
  }
}

// Clips of the demo ------------------------------------------------------------------------------------------------

export const CLIPS = 12;
export const clips = signal<Clip[]>([]);
export const clipsStart = signal(0);
export const clipsTrouble = signal("");

export const listClips = async (start: number, count: number, signal?: AbortSignal): Promise<Clip[]> =>
  (await get<{ clips: Clip[] }>(`/demo/clips?start=${start}&count=${count}`, { signal })).clips;

export async function loadClips(start: number): Promise<void> {
  try {
    clips.value = await listClips(start, CLIPS);
    clipsStart.value = start;
    clipsTrouble.value = "";
  } catch (error) {
    clipsTrouble.value = messageOf(error);
  }
}

export async function contentOf(clip: Clip): Promise<Required<Content>> {
  const [audio, image] = await Promise.all([load(clip.audio), load(clip.image)]);
  return { audio, image };
}

export async function sampleOf(clip: Clip): Promise<Sample> {
  return {
    name: clip.id,
    from: "clips",
    content: await contentOf(clip),
    files: { audio: `${clip.id}.wav`, image: `${clip.id}.png` },
    truth: clip.label,
  };
}

// Pictures of the gallery, for labels as texts ----------------------------------------------------------------------

export type Pictured = Item & { preview: string };
export const pictures = signal<Pictured[]>([]);
export const picturesStart = signal(0);
export const picturesTrouble = signal("");

/** Those from `start` on that have a preview; from the first again where that was the end. */
export async function loadPictures(start: number): Promise<void> {
  const name = gallery.value;
  if (!name) return;
  try {
    const page = await get<ItemPage>(`/galleries/${part(name)}/items?offset=${start}&limit=${CLIPS}`);
    if (name !== gallery.value) return;
    if (page.items.length === 0 && start > 0) return await loadPictures(0);
    pictures.value = page.items.filter((item): item is Pictured => item.preview !== undefined);
    picturesStart.value = start;
    picturesTrouble.value = "";
  } catch (error) {
    picturesTrouble.value = messageOf(error);
  }
}

export async function sampleOfItem(item: Pictured): Promise<Sample> {
  return {
    name: item.id,
    from: "pictures",
    content: { image: await load(item.preview) },
    files: { image: `${item.id.replace(/[^\w.-]+/g, "_")}.webp` },
    truth: null,
  };
}

// Sequences: many samples, one after the other ---------------------------------------------------------------------

export interface Sequence {
  kind: "clips" | "live";
  /** Of the samples that it will have; null: until it is stopped. */
  total: number | null;
  answered: number;
  /** The last of them. */
  entries: Entry[];
  over: boolean;
  note: string;
}

export const sequence = signal<Sequence | null>(null);
export const going = computed(() => sequence.value !== null && !sequence.value.over);
/** Shown as long as a sequence waits for the server. */
export const waiting = signal("");
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
async function follow(
  kind: Sequence["kind"],
  total: number | null,
  next: (place: number, signal: AbortSignal) => Promise<Sample | null>,
): Promise<void> {
  running.abort();
  asking.abort();
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

// Camera and microphone --------------------------------------------------------------------------------------------

export const wanted = signal<Wanted>({ camera: true, microphone: true });
export const capture = signal<Capture | null>(null);
export const opening = signal(false);
/** What is wrong with the devices. */
export const deviceTroubles = signal<string[]>([]);
const EVERY_MS = 1000;
const LOOK_MS = 100;
let opened = 0;

/** Open the devices and ask about what they see and hear, once a second, until stopped. */
export async function goLive(): Promise<void> {
  const mine = ++opened;
  capture.value?.stop();
  opening.value = true;
  deviceTroubles.value = [];
  let made: Capture | null = null;
  try {
    made = await Capture.open(wanted.value, heardSeconds(models.value?.classifier?.audio.frames), (why) => {
      deviceTroubles.value = [...deviceTroubles.value, why];
      if (made && !made.live && capture.value === made) stopSequence();
    });
    deviceTroubles.value = [...deviceTroubles.value, ...made.troubles];
  } catch (error) {
    deviceTroubles.value = [...deviceTroubles.value, messageOf(error)];
  } finally {
    if (mine === opened) opening.value = false;
  }
  if (!made) return;
  // Stopped, or the view was left, while the browser asked.
  if (mine !== opened || !made.live) {
    made.stop();
    return;
  }
  capture.value = made;
  try {
    await follow("live", null, (place, signal) => lookAndListen(made, place, signal));
  } finally {
    made.stop();
    if (capture.value === made) capture.value = null;
  }
}

let lookedAt = 0;

/** The next sample of the devices. Raises AbortError. */
async function lookAndListen(from: Capture, place: number, signal: AbortSignal): Promise<Sample> {
  if (place > 0) await pause(Math.max(0, lookedAt + EVERY_MS - performance.now()), signal);
  for (;;) {
    const sound = from.sound();
    const frame = await from.frame();
    // Both where both are there, so that the first answers are not about half a sample.
    if ((sound || !from.has("microphone")) && (frame || !from.has("camera")) && (sound || frame)) {
      lookedAt = performance.now();
      const content: Content = {};
      if (sound) content.audio = await dataUri(sound);
      if (frame) content.image = await dataUri(frame);
      return {
        name: "now",
        from: "live",
        content,
        files: { audio: "microphone.wav", image: "camera.jpg" },
        truth: null,
      };
    }
    await pause(LOOK_MS, signal);
  }
}

/** Let go of the devices, also of those that the browser is still asking about. */
export function stopLive(): void {
  opened++;
  opening.value = false;
  if (capture.value) {
    stopSequence();
    capture.value.stop();
    capture.value = null;
  }
}
