// What moved between two rankings of the same query.

export interface Moved<T> {
  hit: T;
  /** From 1. */
  rank: number;
  /** Its rank in the other ranking; null: it is not among those. */
  before: number | null;
  /** Places that it has gained; null: it is new. */
  gained: number | null;
}

/** `after`, each hit with where it was in `before`. */
export function moves<T extends { id: string }>(after: readonly T[], before: readonly T[]): Moved<T>[] {
  const ranks = new Map(before.map((hit, place) => [hit.id, place + 1]));
  return after.map((hit, place) => {
    const was = ranks.get(hit.id) ?? null;
    return { hit, rank: place + 1, before: was, gained: was === null ? null : was - (place + 1) };
  });
}

/** Hits of `before` that `after` lost. */
export function lost<T extends { id: string }>(after: readonly T[], before: readonly T[]): T[] {
  const kept = new Set(after.map((hit) => hit.id));
  return before.filter((hit) => !kept.has(hit.id));
}

/** Share of queries whose truth is among the first k; null for none. */
export function recall(ranks: readonly (number | null)[], k: number): number | null {
  if (ranks.length === 0) return null;
  return ranks.filter((rank) => rank !== null && rank <= k).length / ranks.length;
}
