// Labels: those a person writes, and those of an answer in rows.

interface Labelled {
  label: string;
  probability: number;
}

export interface Row {
  label: string;
  source: number | null;
  adapted: number | null;
  /** It is the true one. */
  true: boolean;
}

/** Labels between commas or lines, each once, without what surrounds them. */
export function parseLabels(text: string): string[] {
  return [
    ...new Set(
      text
        .split(/[,\n]/)
        .map((label) => label.trim())
        .filter(Boolean),
    ),
  ];
}

/** Why these labels cannot be asked with; empty: they can. */
export function labelsTrouble(labels: readonly string[], template: string, most: number): string {
  if (labels.length < 2) return "Write two labels or more, with commas between them.";
  if (labels.length > most) return `There are ${labels.length} labels; the server takes ${most} at most.`;
  const long = labels.find((label) => label.length > 256);
  if (long) return `A label has 256 characters at most; “${long.slice(0, 30)}…” has ${long.length}.`;
  if (template.split("{}").length !== 2 || /[{}]/.test(template.replace("{}", "")))
    return "The sentence needs {} once, where the label goes, and no other braces.";
  return "";
}

/** The `most` likeliest labels by either model; the true one is always among them. */
export function rowsOf(
  source: readonly Labelled[] | null,
  adapted: readonly Labelled[] | null,
  truth: string | null,
  most: number,
): Row[] {
  const rows = new Map<string, Row>();
  const row = (label: string): Row => {
    const made = rows.get(label) ?? { label, source: null, adapted: null, true: label === truth };
    rows.set(label, made);
    return made;
  };
  for (const { label, probability } of source ?? []) row(label).source = probability;
  for (const { label, probability } of adapted ?? []) row(label).adapted = probability;
  const height = (one: Row) => Math.max(one.source ?? 0, one.adapted ?? 0);
  const sorted = [...rows.values()].sort(
    (one, other) => height(other) - height(one) || (one.label < other.label ? -1 : 1),
  );
  const shown = sorted.slice(0, most);
  const hidden = sorted.slice(most).find((one) => one.true);
  return hidden ? [...shown.slice(0, most - 1), hidden] : shown;
}
