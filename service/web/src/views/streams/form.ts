// Settings of a method as a form: from JSON Schema to controls, and from what was typed to JSON.

import type { Json, MethodCard, SettingSchema } from "../../lib/types.ts";

export interface Control {
  name: string;
  kind: "number" | "whole" | "switch" | "choice" | "json";
  /** Whether null is a value of its own. */
  nullable: boolean;
  choices: string[];
  description: string;
  standard: Json;
  schema: SettingSchema;
}

/** What stands in the controls, by setting; "" or absent: the default. */
export type Draft = Record<string, string>;

/** Stands for null in a draft. */
export const NONE = "none";

function controlOf(name: string, schema: SettingSchema): Control {
  const options = schema.anyOf ?? [];
  const inner = options.find((option) => option.type !== "null") ?? schema;
  const kind = inner.enum
    ? "choice"
    : inner.type === "integer"
      ? "whole"
      : inner.type === "number"
        ? "number"
        : inner.type === "boolean"
          ? "switch"
          : "json";
  return {
    name,
    kind,
    nullable: options.some((option) => option.type === "null"),
    choices: inner.enum ?? [],
    description: schema.description ?? "",
    standard: schema.default ?? null,
    schema: inner,
  };
}

export function controlsOf(method: MethodCard, preset: string): Control[] {
  const over = method.presets[preset] ?? {};
  return Object.entries(method.settings).map(([name, schema]) => {
    const control = controlOf(name, schema);
    return name in over ? { ...control, standard: over[name] ?? null } : control;
  });
}

export const written = (value: Json): string =>
  value === null ? NONE : typeof value === "object" ? JSON.stringify(value) : String(value);

/** From settings that are set to a draft, the preset aside. */
export function draftOf(settings: Record<string, Json>): { preset: string; draft: Draft } {
  const { preset, ...rest } = settings;
  return {
    preset: typeof preset === "string" ? preset : "",
    draft: Object.fromEntries(Object.entries(rest).map(([name, value]) => [name, written(value)])),
  };
}

/** What was typed as a value. Raises Error, in words for who typed it. */
function parsed(control: Control, text: string): Json {
  const { kind, schema } = control;
  if (control.nullable && text === NONE) return null;
  if (kind === "switch") return text === "true";
  if (kind === "choice") return text;
  if (kind === "json") return jsonOf(text);
  const value = Number(text);
  if (!Number.isFinite(value)) throw new Error("This is no number.");
  if (kind === "whole" && !Number.isInteger(value)) throw new Error("Whole numbers only.");
  const limit = limits(schema).find(([holds]) => !holds(value));
  if (limit) throw new Error(`It has to be ${limit[1]}.`);
  return value;
}

function jsonOf(text: string): Json {
  try {
    return JSON.parse(text) as Json;
  } catch {
    throw new Error("This is no JSON.");
  }
}

type Limit = [holds: (value: number) => boolean, words: string];

function limits({ minimum, maximum, exclusiveMinimum, exclusiveMaximum }: SettingSchema): Limit[] {
  const found: Limit[] = [];
  if (minimum !== undefined) found.push([(value) => value >= minimum, `at least ${minimum}`]);
  if (maximum !== undefined) found.push([(value) => value <= maximum, `at most ${maximum}`]);
  if (exclusiveMinimum !== undefined) found.push([(value) => value > exclusiveMinimum, `above ${exclusiveMinimum}`]);
  if (exclusiveMaximum !== undefined) found.push([(value) => value < exclusiveMaximum, `below ${exclusiveMaximum}`]);
  return found;
}

export interface Settings {
  settings: Record<string, Json>;
  /** What is wrong, by setting. */
  wrong: Record<string, string>;
}

/** What is to be sent: only what is set, and the preset if one is chosen. */
export function settingsOf(controls: readonly Control[], draft: Draft, preset: string): Settings {
  const settings: Record<string, Json> = preset ? { preset } : {};
  const wrong: Record<string, string> = {};
  for (const control of controls) {
    const text = (draft[control.name] ?? "").trim();
    if (text === "") continue;
    try {
      settings[control.name] = parsed(control, text);
    } catch (error) {
      wrong[control.name] = error instanceof Error ? error.message : String(error);
    }
  }
  return { settings, wrong };
}
