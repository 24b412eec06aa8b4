// A run's queries: which are sent, and what is answered to them.

import { corrupted, type Corruption, type Post } from "../../lib/corruptions.ts";
import { everyOne, patiently } from "../../lib/patience.ts";
import type { Planned } from "../../lib/runner.ts";
import type { Hit, Json, Modality, RetrieveAnswer } from "../../lib/types.ts";

export interface Query {
  text?: string;
  image?: string;
}

export interface Plan extends Planned {
  gallery: string;
  /** What the queries are; the other modality of the items is searched. */
  kind: Modality;
  corruption: Corruption | null;
}

/** Ranks of the truth from 1; null: not among the first ten. */
export type Ranks = (number | null)[];

export interface Batch {
  ids: string[];
  queries: Query[];
  source: Ranks;
  adapted: Ranks;
  status: string;
  reason: string;
}

/** What a run asks of the server; each may raise ApiError. */
export interface Asks {
  clean: (id: string, kind: Modality, signal: AbortSignal) => Promise<Query>;
  post: Post;
  /** Called with what is waited for, and with "" when that is over. */
  waiting: (why: string) => void;
  sleep: (milliseconds: number, signal: AbortSignal) => Promise<void>;
}

const K = 10;
const PICTURES_AT_ONCE = 8;

export const other = (kind: Modality): Modality => (kind === "image" ? "text" : "image");

/** Numbers from 0 to 1, the same for the same seed (mulberry32). */
function randoms(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** `total` of the ids in a seeded order; all come once before any comes again, each time in another order. */
export function order(ids: readonly string[], total: number, seed: number): string[] {
  const made: string[] = [];
  for (let pass = 0; made.length < total && ids.length > 0; pass++) made.push(...shuffled(ids, seed * 1009 + pass));
  return made.slice(0, total);
}

function shuffled(ids: readonly string[], seed: number): string[] {
  const next = randoms(seed);
  const mixed = [...ids];
  for (let place = mixed.length - 1; place > 0; place--) {
    const other = Math.floor(next() * (place + 1));
    [mixed[place], mixed[other]] = [mixed[other]!, mixed[place]!];
  }
  return mixed;
}

/** Send the plan's queries, batch after batch. Ends when all are sent; raises what cannot be waited out. */
export async function* send(
  plan: Plan,
  ids: readonly string[],
  asks: Asks,
  signal: AbortSignal,
): AsyncGenerator<Batch> {
  const wanted = order(ids, plan.queries, plan.seed);
  const tried = <T>(work: () => Promise<T>) => patiently(work, signal, asks.waiting, asks.sleep);
  for (let start = 0; start < wanted.length; start += plan.batch) {
    const batch = wanted.slice(start, start + plan.batch);
    const clean = await everyOne(batch, PICTURES_AT_ONCE, (id) => tried(() => asks.clean(id, plan.kind, signal)));
    // Another seed for each batch: an item that comes again is noisy in another way.
    const seed = plan.seed + start;
    const queries = await tried(() => corrupted(clean, { [plan.kind]: plan.corruption }, seed, asks.post, signal));
    const ask = (options: Record<string, Json>) =>
      tried(() =>
        asks.post<RetrieveAnswer>(
          "/retrieve",
          { queries: queries as Json, gallery: plan.gallery, target: other(plan.kind), k: K, ...options },
          signal,
        ),
      );
    const [source, adapted] = await Promise.all([ask({ adapt: "off" }), ask({ adapt: "sync", stream: plan.stream })]);
    const { status, reason } = adapted.adaptation;
    yield {
      ids: batch,
      queries,
      source: ranksOf(batch, source),
      adapted: ranksOf(batch, adapted),
      status,
      reason,
    };
  }
}

const ranksOf = (ids: readonly string[], answer: RetrieveAnswer): Ranks =>
  ids.map((id, place) => rankOf(id, answer.results[place]?.hits ?? []));

export function rankOf(id: string, hits: readonly Pick<Hit, "id">[]): number | null {
  const place = hits.findIndex((hit) => hit.id === id);
  return place < 0 ? null : place + 1;
}
