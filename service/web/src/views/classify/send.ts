// A run's samples: which are sent, and what is answered to them.

import { corrupted, type Corruption, type Post } from "../../lib/corruptions.ts";
import { everyOne, patiently } from "../../lib/patience.ts";
import type { Planned } from "../../lib/runner.ts";
import type { ClassifyAnswer, Clip, Json } from "../../lib/types.ts";
import type { Entry, Said } from "./course.ts";

export type Medium = "audio" | "image";
export const MEDIA: readonly Medium[] = ["audio", "image"];

export interface Content {
  audio?: string;
  image?: string;
}

export interface Plan extends Planned {
  corruption: Record<Medium, Corruption | null>;
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
  post: Post;
  /** Called with what is waited for, and with "" when that is over. */
  waiting: (why: string) => void;
}

const AT_ONCE = 8;

/** Send the plan's clips, batch after batch, to both models. Raises what cannot be waited out. */
export async function* send(plan: Plan, asks: Asks, signal: AbortSignal): AsyncGenerator<Batch> {
  const again = <T>(work: () => Promise<T>) => patiently(work, signal, asks.waiting);
  for (let start = 0; start < plan.queries; start += plan.batch) {
    const clips = await again(() => asks.clips(start, Math.min(plan.batch, plan.queries - start), signal));
    const clean = await everyOne(clips, AT_ONCE, (clip) => again(() => asks.content(clip, signal)));
    const contents = await again(() => corrupted<Medium>(clean, plan.corruption, plan.seed + start, asks.post, signal));
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
