// How a stream is: one word for the operator, worked out from what its tracks tell.

import { ago, figure } from "../../lib/format.ts";
import type { GuardEvent, StreamCard, Track } from "../../lib/types.ts";

/** The worst first. */
const CONDITIONS = [
  "guarded",
  "undone",
  "warned",
  "skipping",
  "shifted",
  "learning",
  "healthy",
  "new",
  "idle",
  "fixed",
] as const;
export type Name = (typeof CONDITIONS)[number];

export interface Condition {
  name: Name;
  /** What the badge says. */
  text: string;
  /** The same in a sentence. */
  why: string;
  /** When it began, in seconds since 1970, where that is known. */
  since: number | null;
  /** Place of the track that it is about. */
  track: number;
}

export const KIND: Record<Name, "ok" | "busy" | "warn" | "bad" | "off"> = {
  guarded: "bad",
  undone: "bad",
  warned: "warn",
  skipping: "warn",
  shifted: "warn",
  learning: "busy",
  healthy: "ok",
  new: "off",
  idle: "off",
  fixed: "off",
};

/** Conditions that want somebody to look. A shift does not: that is what a stream adapts to. */
export const needsAttention = (condition: Condition): boolean =>
  CONDITIONS.indexOf(condition.name) < CONDITIONS.indexOf("shifted");

/** Not heard of for so long a stream is idle. */
const IDLE_S = 300;
const LEARNING_S = 60;
/** For so long an intervention is shown though its rest is over. */
const REMEMBERED_S = 600;
/** Of the shift, where clean batches are 1; the presets learn from here on. */
const SHIFTED = 2.5;

const DONE: Record<string, string> = {
  rollback: "rolled back",
  reset: "reset",
  freeze: "stopped learning",
  skip: "skipped a batch",
  warn: "warned",
};

/** What the guard did, as a verb. */
export const done = (action: string): string => DONE[action] ?? action;

const FOUND: Record<string, string> = {
  crowded: "its queries are almost the same",
  unusual: "its queries are unlike those before",
  changed: "its queries have changed",
  harm: "adaptation did harm",
  canaries: "known answers were ranked worse",
};

/** What the guard saw, as the end of a sentence. */
export const found = (finding: string): string => FOUND[finding] ?? finding;

/** How long a track rests: "3 more batches". */
export const restWords = (batches: number): string => `${batches} more ${batches === 1 ? "batch" : "batches"}`;

/** Why the guard did it, with its figures, as the end of a sentence. */
export const because = ({ finding, reason }: GuardEvent): string =>
  finding === "harm" ? `${found(finding)}: ${reason}` : reason;

const last = <T>(values: readonly T[] | undefined): T | undefined => values?.at(-1);

/** The newest value that is known. */
export const latest = (values: readonly (number | null)[] | undefined): number | null =>
  values?.findLast((value) => value !== null) ?? null;

export function conditionOf(card: StreamCard, now: number): Condition {
  const all = card.tracks.map((track, place) => ofTrack(track, place, card, now));
  const worst = all.sort(compare)[0];
  if (worst) return worst;
  const idle = now - card.last_seen > IDLE_S;
  return idle
    ? quiet("idle", "It has had no queries for a while.", 0)
    : quiet("new", "It has not adapted to anything yet.", 0);
}

/** The worse first; among equals what began last. */
export function compare(one: Condition, other: Condition): number {
  return CONDITIONS.indexOf(one.name) - CONDITIONS.indexOf(other.name) || (other.since ?? 0) - (one.since ?? 0);
}

const quiet = (name: Name, why: string, track: number): Condition => ({ name, text: name, why, since: null, track });

function ofTrack(track: Track, place: number, card: StreamCard, now: number): Condition {
  const trouble =
    guarded(track, place, now) ?? failing(track, place) ?? concerned(track, place) ?? shifted(track, place, now);
  return trouble ?? calm(track, place, card, now);
}

function guarded({ guard }: Track, track: number, now: number): Condition | null {
  const event = guard.events.findLast(({ action }) => action === "rollback" || action === "reset");
  if (!event || event.finding === "changed") return null;
  const rests = guard.cooldown_batches > 0;
  if (!rests && now - event.time > REMEMBERED_S) return null;
  const rest = rests ? ` It rests for ${restWords(guard.cooldown_batches)}.` : "";
  return {
    name: "guarded",
    text: `guarded: ${done(event.action)} ${ago(event.time, now)}`,
    why: `The guard ${undid(event)} ${ago(event.time, now)}, because ${because(event)}.${rest}`,
    since: event.time,
    track,
  };
}

const undid = ({ action }: GuardEvent): string =>
  action === "rollback" ? "went back to the last good state" : "went back to the source model";

function failing({ recent, last_reason: reason }: Track, track: number): Condition | null {
  if (last(recent?.status) !== "undone") return null;
  return {
    name: "undone",
    text: "last batch undone",
    why: `What the last batch taught was undone: ${reason}.`,
    since: last(recent?.at) ?? null,
    track,
  };
}

function concerned({ guard }: Track, track: number): Condition | null {
  const event = guard.events.findLast(({ finding }) => finding === guard.finding);
  if (!guard.finding || !event || (guard.finding === "changed" && event.action !== "freeze")) return null;
  const skips = event.action === "skip" || event.action === "freeze";
  const reason = because(event);
  return {
    name: skips ? "skipping" : "warned",
    text: skips ? "not learning" : "guard warns",
    why: skips ? `It is answered but not learned from, because ${reason}.` : `The guard warns that ${reason}.`,
    since: event.time,
    track,
  };
}

function shifted({ guard, recent }: Track, track: number, now: number): Condition | null {
  const event = last(guard.events);
  if (event?.finding === "changed" && now - event.time < REMEMBERED_S) {
    const what = event.action === "reset" ? "started anew" : done(event.action);
    return {
      name: "shifted",
      text: `shifted: ${what} ${ago(event.time, now)}`,
      why: `The guard ${done(event.action)} ${ago(event.time, now)}: ${event.reason}.`,
      since: event.time,
      track,
    };
  }
  const shift = latest(recent?.shift);
  if (shift === null || shift < SHIFTED) return null;
  return {
    name: "shifted",
    text: `shifted: ${figure(shift, 2)} × clean`,
    why: `Its queries are ${figure(shift, 2)} times as far from clean ones as clean ones are from each other.`,
    since: null,
    track,
  };
}

function calm(track: Track, place: number, card: StreamCard, now: number): Condition {
  const classifies = track.direction === "audio+video->label";
  const method = classifies ? card.classify?.method : card.method;
  if (now - card.last_seen > IDLE_S) return quiet("idle", `Its last query came ${ago(card.last_seen, now)}.`, place);
  if (method === "source")
    return {
      ...quiet("fixed", "It is answered by the source model, which never adapts.", place),
      text: "not adapting",
    };
  const at = last(track.recent?.at);
  if (at !== undefined && now - at < LEARNING_S && last(track.recent?.status) === "applied") {
    return quiet("learning", `It learned from a batch ${ago(at, now)}.`, place);
  }
  if (track.batches === 0 && track.applied + track.skipped + track.undone === 0) {
    const gathered = track.gathered > 0 ? ` ${track.gathered} queries are gathered for the first batch.` : "";
    return quiet("new", `It has not learned from anything yet.${gathered}`, place);
  }
  return quiet("healthy", "It adapts, and the guard has nothing against it.", place);
}
