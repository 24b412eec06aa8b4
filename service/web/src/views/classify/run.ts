// A bounded stream of demo clips, corrupted alike: what is sent, and what comes of it.

import { everyOne, patiently } from "../../lib/patience.ts";
import type { ClassifyAnswer, Clip, Json } from "../../lib/types.ts";
import type { Entry, Said } from "./course.ts";

export type Medium = "audio" | "image";

export interface Corruption {
  name: string;
  severity: number;
}

export interface Content {
  audio?: string;
  image?: string;
}

export interface Plan {
  stream: string;
  corruption: Record<Medium, Corruption | null>;
  samples: number;
  batch: number;
  seed: number;
}

export interface Batch {
  clips: Clip[];
  contents: Content[];
  entries: Entry[];
  status: string;
  reason: string;
}

/** What a run asks of the server; each may raise ApiError. */
export interface Asks {
  clips: (start: number, count: number, signal: AbortSignal) => Promise<Clip[]>;
  content: (clip: Clip, signal: AbortSignal) => Promise<Content>;
  post: <T>(path: string, body: Json, signal: AbortSignal) => Promise<T>;
  /** Called with what is waited for, and with "" when that is over. */
  waiting: (why: string) => void;
}

const AT_ONCE = 8;
export const MEDIA: readonly Medium[] = ["audio", "image"];

/** Send the plan's clips, batch after batch, to both models. Raises what cannot be waited out. */
export async function* send(plan: Plan, asks: Asks, signal: AbortSignal): AsyncGenerator<Batch> {
  const again = <T>(work: () => Promise<T>) => patiently(work, signal, asks.waiting);
  for (let start = 0; start < plan.samples; start += plan.batch) {
    const clips = await again(() => asks.clips(start, Math.min(plan.batch, plan.samples - start), signal));
    const clean = await everyOne(clips, AT_ONCE, (clip) => again(() => asks.content(clip, signal)));
    const contents = await again(() => corrupted(clean, plan.corruption, plan.seed + start, asks.post, signal));
    const samples = contents.map(({ audio, image }) => ({ ...(audio && { audio }), ...(image && { image }) }));
    const ask = (options: Record<string, Json>) =>
      again(() => asks.post<ClassifyAnswer>("/classify", { samples, top: 1, ...options }, signal));
    const [source, adapted] = await Promise.all([ask({ adapt: "off" }), ask({ adapt: "sync", stream: plan.stream })]);
    const entries = clips.map((clip, place) => ({
      truth: clip.label,
      source: said(source, place),
      adapted: said(adapted, place),
    }));
    yield { clips, contents, entries, status: adapted.adaptation.status, reason: adapted.adaptation.reason };
  }
}

export function said(answer: ClassifyAnswer | null, place = 0): Said | null {
  const result = answer?.results[place];
  const label = result?.labels[0]?.label;
  return result && label !== undefined ? { label, entropy: result.entropy_nats } : null;
}

/** Sounds and pictures as the server corrupts them; a medium without a corruption stays as it is. */
export async function corrupted(
  clean: readonly Content[],
  how: Plan["corruption"],
  seed: number,
  post: Asks["post"],
  signal: AbortSignal,
): Promise<Content[]> {
  const made = clean.map((content) => ({ ...content }));
  await Promise.all(
    MEDIA.map(async (medium) => {
      const chosen = how[medium];
      const places = made.flatMap((content, place) => (content[medium] === undefined ? [] : [place]));
      if (!chosen || places.length === 0) return;
      const queries = places.map((place) => ({ [medium]: made[place]![medium]! }));
      const body = { corruption: chosen.name, severity: chosen.severity, seed, queries };
      const answer = await post<{ queries: Content[] }>("/corruptions", body, signal);
      places.forEach((place, query) => {
        made[place]![medium] = answer.queries[query]![medium]!;
      });
    }),
  );
  return made;
}

/** A stream's name that is not among `taken`: `rain-5`, else `rain-5-2` and so on. */
export function freshName(how: Plan["corruption"], taken: ReadonlySet<string>): string {
  const parts = MEDIA.flatMap((medium) =>
    how[medium] ? [`${how[medium].name.replaceAll("_", "-")}-${how[medium].severity}`] : [],
  );
  const base = parts.join("-") || "clean-clips";
  for (let number = 1; ; number++) {
    const name = number === 1 ? base : `${base}-${number}`;
    if (!taken.has(name)) return name;
  }
}
