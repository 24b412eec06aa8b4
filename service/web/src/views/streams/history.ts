// A track's past as it is plotted: what the server told once, and what has come since.

import type { Figure, GuardEvent, History, Track } from "../../lib/types.ts";
import { done, found } from "./condition.ts";

/** As many as the server remembers. */
const KEPT = 240;
const FIGURES: readonly Figure[] = [
  "modality_gap",
  "modality_gap_target",
  "uniformity",
  "entropy_nats",
  "source_likeness",
  "shift",
  "loss",
];

/** Before anything is known. */
export const NOTHING: History = { at: [], version: [], status: [], batch: [] };

interface Joined {
  history: History;
  /** False: it has to be asked for, since batches between the two are missing, or it is another past (after a restore). */
  whole: boolean;
}

/** `history` and what the card of its track tells of the batches after it. */
export function joined(history: History, track: Track): Joined {
  const recent = track.recent;
  if (!recent) return { history, whole: true };
  const until = history.at.at(-1) ?? -1;
  const newest = recent.at.at(-1);
  if (newest === undefined) return { history, whole: history.at.length === 0 };
  // Either a snapshot was restored, or the card is the older one: the server knows.
  if (newest < until) return { history, whole: false };
  // The last that is known must be among the recent ones, else something lies between or it is not the same past.
  // Cards tell one loss only: of a past that is new here and longer, after a restore, the server knows the rest.
  const follows = history.at.length === 0 ? recent.at.length <= 1 : recent.at.includes(until);
  if (!follows) return { history, whole: false };
  const start = recent.at.findIndex((at) => at > until);
  return { history: start < 0 ? history : appended(history, recent, start, track), whole: true };
}

function appended(history: History, recent: History, start: number, track: Track): History {
  const first = history.batch?.at(-1) ?? 0;
  const count = recent.at.length - start;
  const next: History = {
    at: [...history.at, ...recent.at.slice(start)].slice(-KEPT),
    version: [...history.version, ...recent.version.slice(start)].slice(-KEPT),
    status: [...history.status, ...recent.status.slice(start)].slice(-KEPT),
    batch: [...(history.batch ?? []), ...Array.from({ length: count }, (_, place) => first + place + 1)].slice(-KEPT),
  };
  for (const name of FIGURES) {
    const known = recent[name]?.slice(start) ?? Array.from({ length: count }, () => null);
    // The card tells the newest batch's loss, and nobody's else.
    if (!recent[name]) known[count - 1] = (name === "loss" ? track.losses?.total : track.drift?.[name]) ?? null;
    next[name] = [...(history[name] ?? history.at.map(() => null)), ...known].slice(-KEPT);
  }
  return next;
}

interface HistoryMark {
  at: number;
  label: string;
  colour: "warn" | "bad";
}

/** What is marked in the plots: guard events, undone batches, and where a run of skipped ones begins. */
export function marksOf(history: History, events: readonly GuardEvent[]): HistoryMark[] {
  const batches = history.batch ?? history.at.map((_, place) => place + 1);
  const marks: HistoryMark[] = [];
  history.status.forEach((status, place) => {
    const at = batches[place] ?? 0;
    if (status === "undone") marks.push({ at, label: "undone", colour: "bad" });
    if (status === "skipped" && history.status[place - 1] !== "skipped")
      marks.push({ at, label: "skipped", colour: "warn" });
  });
  for (const event of events) {
    // A batch is recorded just after the guard has ruled on it.
    const place = history.at.findIndex((at) => at >= event.time - 0.01);
    if (place < 0 || (place === 0 && event.time < (history.at[0] ?? 0) - 60)) continue;
    const severe = event.action === "rollback" || event.action === "reset";
    marks.push({
      at: batches[place] ?? 0,
      label: `${done(event.action)}: ${found(event.finding)}`,
      colour: severe ? "bad" : "warn",
    });
  }
  return marks;
}
