// What the server can do to queries: the corruptions of the benchmarks.

import { signal } from "@preact/signals";
import { get } from "./api.ts";
import { messageOf } from "./state.ts";
import type { Corruptions, Json } from "./types.ts";

export interface Corruption {
  name: string;
  severity: number;
}

/** Whatever a corruption can belong to: "image", "text" or "audio". */
export type Medium = keyof Corruptions;

export const corruptions = signal<Corruptions | null>(null);
/** Why there are none; empty while they are not asked for. */
export const corruptionsTrouble = signal("");

export async function loadCorruptions(): Promise<void> {
  try {
    corruptions.value = await get<Corruptions>("/corruptions");
    corruptionsTrouble.value = "";
  } catch (error) {
    corruptionsTrouble.value = messageOf(error);
  }
}

/** Sends a request's body; may raise ApiError. */
export type Post = <T>(path: string, body: Json, signal: AbortSignal) => Promise<T>;

/** Queries as the server corrupts them, each of them with what `how` says of its parts; the rest stays as it is. */
export async function corrupted<M extends Medium>(
  clean: readonly Partial<Record<M, string>>[],
  how: Partial<Record<M, Corruption | null>>,
  seed: number,
  post: Post,
  signal: AbortSignal,
): Promise<Partial<Record<M, string>>[]> {
  const made = clean.map((query) => ({ ...query }));
  const one = async (medium: M): Promise<void> => {
    const chosen = how[medium];
    const places = made.flatMap((query, place) => (query[medium] === undefined ? [] : [place]));
    if (!chosen || places.length === 0) return;
    const queries = places.map((place) => ({ [medium]: made[place]![medium]! }));
    const body = { corruption: chosen.name, severity: chosen.severity, seed, queries };
    const answer = await post<{ queries: Partial<Record<M, string>>[] }>("/corruptions", body, signal);
    places.forEach((place, query) => {
      made[place]![medium] = answer.queries[query]![medium]!;
    });
  };
  await Promise.all((Object.keys(how) as M[]).map(one));
  return made;
}
