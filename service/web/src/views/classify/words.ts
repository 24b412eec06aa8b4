// What an answer says, in plain words.

import { percent } from "../../lib/format.ts";
import type { Adaptation, ClassifyAnswer } from "../../lib/types.ts";

type Kind = "ok" | "busy" | "warn" | "bad" | "off";
type Result = ClassifyAnswer["results"][number];

const STATUS: Record<Adaptation["status"], { kind: Kind; label: string; meaning: string }> = {
  applied: { kind: "ok", label: "learned", meaning: "The stream learned from this sample" },
  applying: {
    kind: "ok",
    label: "learning",
    meaning: "The stream learns from this sample; the answer left just before the last update",
  },
  queued: { kind: "busy", label: "gathered", meaning: "Answered at once, learned from in the background" },
  skipped: {
    kind: "warn",
    label: "not learned from",
    meaning: "The stream answered but did not learn from this sample",
  },
  undone: { kind: "bad", label: "taken back", meaning: "What was learned from this sample was dropped again" },
  off: { kind: "off", label: "not adapting", meaning: "The stream does not adapt" },
  mixed: { kind: "busy", label: "mixed", meaning: "The samples were treated differently" },
};

export function statusOf(adaptation: Adaptation): { kind: Kind; label: string; text: string } {
  const { kind, label, meaning } = STATUS[adaptation.status];
  return { kind, label, text: adaptation.reason ? `${meaning}: ${adaptation.reason}.` : `${meaning}.` };
}

const PARTS: Record<string, { lost: string; left: string }> = {
  audio: { lost: "sound", left: "the picture" },
  video: { lost: "picture", left: "the sound" },
};

/** What the sample lacked; empty: nothing. */
export const lacked = (result: Pick<Result, "missing">): string[] =>
  result.missing.map((name) => PARTS[name]?.lost ?? name);

/** What made up for what was missing; empty: nothing was missing. */
export function completion({ missing, completed_by: by }: Pick<Result, "missing" | "completed_by">): string {
  const [first] = missing;
  if (first === undefined) return "";
  const { lost, left } = PARTS[first] ?? { lost: first, left: "the rest" };
  if (by === "imputation")
    return `There was no ${lost}: what both would have made was filled in from ${left} (imputation).`;
  return `There was no ${lost}: the model answered from ${left} alone.`;
}

/** How unusual the sample is; empty where that is not known or it is not. */
export function novelty(share: number | null | undefined): string {
  if (share === null || share === undefined || share < 0.95) return "";
  return `Unusual: more so than ${percent(share, 0)} of clean samples, so the model may be out of its depth.`;
}
