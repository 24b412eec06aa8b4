// What a run comes to: its recall, and what its stream's track says of each batch.

import { percent } from "../../lib/format.ts";
import { recall } from "../../lib/ranks.ts";
import { compared, difference, laterHalf, type Compared } from "../../lib/runs.ts";
import type { History, StreamCard } from "../../lib/types.ts";
import { other, type Batch, type Plan, type Ranks } from "./send.ts";

export const FIGURES = ["modality_gap", "modality_gap_target", "uniformity", "entropy_nats"] as const;
export type Figures = Record<(typeof FIGURES)[number], number | null>;

/** Recall after each batch, over that batch and those before it until they are `queries` together. */
export function movingRecall(batches: readonly Ranks[], k: number, queries: number): (number | null)[] {
  return batches.map((_, last) => {
    const ranks: Ranks = [];
    for (let place = last; place >= 0 && ranks.length < queries; place--) ranks.push(...batches[place]!);
    return recall(ranks, k);
  });
}

/** What the second half of a run says of recall@k; null without a query. */
export function verdict(
  batches: readonly Pick<Batch, "source" | "adapted">[],
  k: number,
): (Compared & { sentence: string }) | null {
  const found = (rank: number | null | undefined) => typeof rank === "number" && rank <= k;
  const made = compared(
    laterHalf(batches).flatMap(({ source, adapted }) =>
      source.map((rank, query) => ({ source: found(rank), adapted: found(adapted[query]) })),
    ),
  );
  if (!made) return null;
  const sides = `source ${percent(made.source)}, adapted ${percent(made.adapted)} (recall@${k})`;
  return { ...made, sentence: `Over the last ${made.queries} queries: ${sides}, ${difference(made, "queries")}.` };
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
    if (place >= 0) {
      rows.set(place, Object.fromEntries(FIGURES.map((name) => [name, recent?.[name]?.[row] ?? null])) as Figures);
    }
  }
  return rows;
}
