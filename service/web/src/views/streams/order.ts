// The order of the streams in the table, and how it is kept while someone reads.

import type { StreamCard, Track } from "../../lib/types.ts";
import { compare as compareConditions, latest, needsAttention, type Condition } from "./condition.ts";

export interface Row {
  card: StreamCard;
  condition: Condition;
  /** The track that the figures are of; null: it has none yet. */
  track: Track | null;
}

export const COLUMNS = [
  "stream",
  "state",
  "method",
  "version",
  "batches",
  "queue",
  "gap",
  "uniformity",
  "entropy",
  "shift",
  "seen",
] as const;
export type Column = (typeof COLUMNS)[number];

export interface Sorting {
  column: Column;
  /** From the largest; of the state: the worst first. */
  down: boolean;
}

export const WORST_FIRST: Sorting = { column: "state", down: true };

/** Of names the first is wanted first, of all else the most. */
export const startsDown = (column: Column): boolean => column !== "stream" && column !== "method";

export const methodsOf = ({ method, classify, tracks }: StreamCard): string[] => {
  const directions = tracks.map((track) => track.direction);
  const classifies = directions.includes("audio+video->label");
  const retrieves = directions.length === 0 || directions.some((direction) => direction !== "audio+video->label");
  return [...new Set([...(retrieves ? [method] : []), ...(classifies && classify ? [classify.method] : [])])];
};

export const batchesOf = ({ tracks }: StreamCard): { applied: number; skipped: number; undone: number } => {
  const sum = (name: "applied" | "skipped" | "undone") => tracks.reduce((total, track) => total + track[name], 0);
  return { applied: sum("applied"), skipped: sum("skipped"), undone: sum("undone") };
};

export const gatheredOf = ({ tracks }: StreamCard): number =>
  tracks.reduce((total, track) => total + track.gathered, 0);

function valueOf({ card, track }: Row, column: Column): string | number | null {
  const { applied, skipped, undone } = batchesOf(card);
  switch (column) {
    case "stream":
      return card.name;
    case "method":
      return methodsOf(card).join(" ");
    case "version":
      return card.version;
    case "batches":
      return applied + skipped + undone;
    case "queue":
      return (card.waiting ?? 0) + gatheredOf(card);
    case "gap":
      return latest(track?.recent?.modality_gap);
    case "uniformity":
      return latest(track?.recent?.uniformity);
    case "entropy":
      return latest(track?.recent?.entropy_nats);
    case "shift":
      return latest(track?.recent?.shift);
    case "seen":
      return card.last_seen;
    case "state":
      return null;
  }
}

const byName = (one: Row, other: Row): number =>
  one.card.name < other.card.name ? -1 : one.card.name > other.card.name ? 1 : 0;

/** Unknown values come last either way; ties by name. By state: the worst, then what began last, then who was seen last. */
export function comparison({ column, down }: Sorting): (one: Row, other: Row) => number {
  const sign = down ? -1 : 1;
  if (column === "state") {
    return (one, other) =>
      -sign * (compareConditions(one.condition, other.condition) || other.card.last_seen - one.card.last_seen) ||
      byName(one, other);
  }
  return (one, other) => {
    const [a, b] = [valueOf(one, column), valueOf(other, column)];
    if (a === b) return byName(one, other);
    if (a === null || b === null) return a === null ? 1 : -1;
    return sign * (a < b ? -1 : 1);
  };
}

export function filtered(rows: Row[], name: string, attentionOnly: boolean): Row[] {
  const wanted = name.trim().toLowerCase();
  return rows.filter(
    (row) => row.card.name.toLowerCase().includes(wanted) && (!attentionOnly || needsAttention(row.condition)),
  );
}

/** `before` without those that left, and each newcomer before the first that it would precede. */
export function kept(
  before: readonly string[],
  sorted: readonly Row[],
  compare: (one: Row, other: Row) => number,
): Row[] {
  const rows = new Map(sorted.map((row) => [row.card.name, row]));
  const order = before.flatMap((name) => rows.get(name) ?? []);
  const known = new Set(before);
  for (const row of sorted.filter(({ card }) => !known.has(card.name))) {
    const place = order.findIndex((other) => compare(row, other) < 0);
    order.splice(place < 0 ? order.length : place, 0, row);
  }
  return order;
}
