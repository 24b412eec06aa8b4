// A bounded stream of corrupted queries of which the truth is known: what is sent, and what comes of it.

import { percent } from "../../lib/format.ts";
import { everyOne, patiently } from "../../lib/patience.ts";
import { recall } from "../../lib/ranks.ts";
import type { Hit, History, Json, Modality, RetrieveAnswer, StreamCard } from "../../lib/types.ts";

export interface Corruption {
  name: string;
  severity: number;
}

export interface Query {
  text?: string;
  image?: string;
}

export interface Plan {
  gallery: string;
  stream: string;
  /** What the queries are; the other modality of the items is searched. */
  kind: Modality;
  corruption: Corruption | null;
  queries: number;
  batch: number;
  seed: number;
}

/** Ranks of the truth from 1; null: not among the first ten. */
export type Ranks = (number | null)[];

export interface Figures {
  modality_gap: number | null;
  modality_gap_target: number | null;
  uniformity: number | null;
  entropy_nats: number | null;
}

export interface Batch {
  ids: string[];
  queries: Query[];
  source: Ranks;
  adapted: Ranks;
  status: string;
  reason: string;
  version: number | null;
}

/** What a run asks of the server; each may raise ApiError. */
export interface Asks {
  clean: (id: string, kind: Modality, signal: AbortSignal) => Promise<Query>;
  post: <T>(path: string, body: Json, signal: AbortSignal) => Promise<T>;
  /** Called with what is waited for, and with "" when that is over. */
  waiting: (why: string) => void;
  sleep: (milliseconds: number, signal: AbortSignal) => Promise<void>;
}

const K = 10;
const PICTURES_AT_ONCE = 8;

export const other = (kind: Modality): Modality => (kind === "image" ? "text" : "image");

/** Numbers from 0 to 1, the same for the same seed (mulberry32). */
export function randoms(seed: number): () => number {
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
    const queries = await tried(() => corrupted(plan, clean, start, asks, signal));
    const ask = (options: Record<string, Json>) =>
      tried(() =>
        asks.post<RetrieveAnswer>(
          "/retrieve",
          { queries: queries as Json, gallery: plan.gallery, target: other(plan.kind), k: K, ...options },
          signal,
        ),
      );
    const [source, adapted] = await Promise.all([ask({ adapt: "off" }), ask({ adapt: "sync", stream: plan.stream })]);
    const { status, reason, state_version: version } = adapted.adaptation;
    yield {
      ids: batch,
      queries,
      source: ranksOf(batch, source),
      adapted: ranksOf(batch, adapted),
      status,
      reason,
      version,
    };
  }
}

async function corrupted(plan: Plan, clean: Query[], start: number, asks: Asks, signal: AbortSignal): Promise<Query[]> {
  if (!plan.corruption) return clean;
  const { name, severity } = plan.corruption;
  // Another seed for each batch: an item that comes again is noisy in another way.
  const body = { corruption: name, severity, seed: plan.seed + start, queries: clean as Json };
  return (await asks.post<{ queries: Query[] }>("/corruptions", body, signal)).queries;
}

const ranksOf = (ids: readonly string[], answer: RetrieveAnswer): Ranks =>
  ids.map((id, place) => rankOf(id, answer.results[place]?.hits ?? []));

export function rankOf(id: string, hits: readonly Pick<Hit, "id">[]): number | null {
  const place = hits.findIndex((hit) => hit.id === id);
  return place < 0 ? null : place + 1;
}

/** Recall after each batch, over that batch and those before it until they are `queries` together. */
export function movingRecall(batches: readonly Ranks[], k: number, queries: number): (number | null)[] {
  return batches.map((_, last) => {
    const ranks: Ranks = [];
    for (let place = last; place >= 0 && ranks.length < queries; place--) ranks.push(...batches[place]!);
    return recall(ranks, k);
  });
}

export interface Verdict {
  queries: number;
  source: number;
  adapted: number;
  outcome: "better" | "worse" | "same" | "unclear";
  sentence: string;
}

/**
 * The second half of a run: by then the stream has seen something. A difference counts where it is more than two
 * standard errors of the queries that only one of the two got right.
 */
export function verdict(batches: readonly Pick<Batch, "source" | "adapted">[], k: number): Verdict | null {
  const counted = batches.slice(Math.floor(batches.length / 2));
  const source = counted.flatMap((batch) => batch.source.map((rank) => found(rank, k)));
  const adapted = counted.flatMap((batch) => batch.adapted.map((rank) => found(rank, k)));
  if (source.length === 0) return null;
  const won = adapted.filter((right, place) => right && !source[place]).length;
  const lost = source.filter((right, place) => right && !adapted[place]).length;
  const outcome =
    won + lost === 0
      ? "same"
      : Math.abs(won - lost) <= 2 * Math.sqrt(won + lost)
        ? "unclear"
        : won > lost
          ? "better"
          : "worse";
  const share = (rights: boolean[]) => rights.filter(Boolean).length / rights.length;
  const made = { queries: source.length, source: share(source), adapted: share(adapted), outcome } as const;
  return { ...made, sentence: sentenceOf(made, k) };
}

const found = (rank: number | null, k: number): boolean => rank !== null && rank <= k;

function sentenceOf(made: Omit<Verdict, "sentence">, k: number): string {
  const points = Math.abs(made.adapted - made.source) * 100;
  const ends = {
    better: `${points.toFixed(1)} points more`,
    worse: `${points.toFixed(1)} points less: adaptation did harm here`,
    same: "no difference",
    unclear: "no clear difference: with so few queries it could be chance",
  };
  return `Over the last ${made.queries} queries: source ${percent(made.source)}, adapted ${percent(made.adapted)} (recall@${k}), ${ends[made.outcome]}.`;
}

/** The track that a plan's queries make, if there is one yet. */
export const trackOf = (card: StreamCard | undefined, plan: Pick<Plan, "gallery" | "kind">) =>
  card?.tracks.find(
    (track) => track.gallery === plan.gallery && track.direction === `${plan.kind}->${other(plan.kind)}`,
  );

/** Figures of the run's batches that a track still tells, by their place in the run; `before`: its batches before the run. */
export function figuresOf(recent: History | undefined, batches: number, before: number): Map<number, Figures> {
  const rows = new Map<number, Figures>();
  const length = recent?.at.length ?? 0;
  for (let row = 0; row < length; row++) {
    const place = batches - length + row - before;
    const value = (name: keyof Figures) => recent?.[name]?.[row] ?? null;
    if (place >= 0) {
      rows.set(place, {
        modality_gap: value("modality_gap"),
        modality_gap_target: value("modality_gap_target"),
        uniformity: value("uniformity"),
        entropy_nats: value("entropy_nats"),
      });
    }
  }
  return rows;
}

/** A stream's name that is not among `taken`: `fog-5`, else `fog-5-2` and so on. */
export function freshName(corruption: Corruption | null, taken: ReadonlySet<string>): string {
  const base = corruption ? `${corruption.name.replaceAll("_", "-")}-${corruption.severity}` : "clean";
  for (let number = 1; ; number++) {
    const name = number === 1 ? base : `${base}-${number}`;
    if (!taken.has(name)) return name;
  }
}
