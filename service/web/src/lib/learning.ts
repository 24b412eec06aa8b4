// What an answer says of its batch, in plain words.

import type { Adaptation } from "./types.ts";

type Kind = "ok" | "busy" | "warn" | "bad" | "off";

const STATUS: Record<Adaptation["status"], { kind: Kind; label: string; meaning: string }> = {
  applied: {
    kind: "ok",
    label: "learned",
    meaning: "The stream learned from this {asked} and answered with what it learned",
  },
  applying: {
    kind: "ok",
    label: "learning",
    meaning: "The stream learns from this {asked}; the answer left just before the last update",
  },
  queued: { kind: "busy", label: "gathered", meaning: "Answered at once, learned from in the background" },
  skipped: {
    kind: "warn",
    label: "not learned from",
    meaning: "The stream answered but did not learn from this {asked}",
  },
  undone: { kind: "bad", label: "taken back", meaning: "What was learned from this {asked} was dropped again" },
  off: { kind: "off", label: "not adapting", meaning: "The stream does not adapt" },
  mixed: { kind: "busy", label: "mixed", meaning: "The parts of this {asked} were treated differently" },
};

/** `asked`: what was asked with, a query or a sample. */
export function statusOf(
  adaptation: Adaptation,
  asked: "query" | "sample",
): { kind: Kind; label: string; text: string } {
  const { kind, label, meaning } = STATUS[adaptation.status];
  const text = meaning.replace("{asked}", asked);
  return { kind, label, text: adaptation.reason ? `${text}: ${adaptation.reason}.` : `${text}.` };
}
