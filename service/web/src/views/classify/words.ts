// What an answer says, in plain words.

import { percent } from "../../lib/format.ts";
import type { Side } from "../../lib/runs.ts";
import type { ClassifyAnswer } from "../../lib/types.ts";

/** What the sides are called. */
export const TITLES: Record<Side, string> = { source: "Source model", adapted: "Adapted stream" };

type Result = ClassifyAnswer["results"][number];

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
  const most = share >= 0.995 ? "practically all" : percent(share, 0);
  return `Unusual: more so than ${most} of clean samples, so the model may be out of its depth.`;
}
