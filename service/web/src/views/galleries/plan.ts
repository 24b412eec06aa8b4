// From the files that were dropped to the items that will be added, before anything is sent.

import { baseName, isList, type Listed, type Payload, readList } from "./lists.ts";
import { LONGEST_ID, uniqueId } from "./names.ts";

/** One item to add. */
export interface Entry {
  id: string;
  text: string;
  payload: Payload | null;
  /** Where its picture is; null: it has a text alone. */
  picture: Blob | null;
  /** The file that it comes from, as people see it. */
  source: string;
  /** Why it cannot be added; "" for nothing. */
  problem: string;
}

/** A dropped file: its path below the dropped folder, or its name. */
interface Dropped {
  path: string;
  blob: Blob;
}

export interface Plan {
  entries: Entry[];
  /** Of lists, by file and line; the rest of the list is used. */
  problems: string[];
}

interface PlanLimits {
  text_characters: number;
}

const HEAD_BYTES = 16;

/** What will be added. Reads lists whole, and the first bytes of pictures. */
export async function plan(files: readonly Dropped[], limits: PlanLimits): Promise<Plan> {
  const lists = files.filter((file) => isList(file.path));
  const pictures = files.filter((file) => !isList(file.path));
  const paths = pictures.map((file) => file.path);
  const read = await Promise.all(lists.map(async (list) => readList(list.path, await textOf(list.blob), paths)));
  const problems = await Promise.all(pictures.map(({ blob }) => pictureProblem(blob)));
  return arrange(
    pictures.map((file, place) => ({ ...file, problem: problems[place] ?? "" })),
    read,
    limits,
  );
}

async function textOf(blob: Blob): Promise<string> {
  return new TextDecoder().decode(await blob.arrayBuffer());
}

async function pictureProblem(blob: Blob): Promise<string> {
  try {
    if (blob.size === 0) return "the file is empty";
    return isPicture(new Uint8Array(await blob.slice(0, HEAD_BYTES).arrayBuffer())) ? "" : "not a picture";
  } catch {
    return "the file cannot be read";
  }
}

const MAGIC: readonly [offset: number, bytes: readonly number[]][] = [
  [0, [0x89, 0x50, 0x4e, 0x47]],
  [0, [0xff, 0xd8, 0xff]],
  [0, [0x47, 0x49, 0x46, 0x38]],
  [0, [0x42, 0x4d]],
  [0, [0x49, 0x49, 0x2a, 0x00]],
  [0, [0x4d, 0x4d, 0x00, 0x2a]],
  [8, [0x57, 0x45, 0x42, 0x50]],
  [4, [0x66, 0x74, 0x79, 0x70]],
];

/** Whether a file starts as PNG, JPEG, GIF, BMP, TIFF, WebP, or AVIF and HEIC do. */
export function isPicture(head: Uint8Array): boolean {
  return MAGIC.some(([offset, bytes]) => bytes.every((byte, place) => head[offset + place] === byte));
}

/** Pictures and lines of lists as items: ids unique, captions at their pictures. */
export function arrange(
  pictures: readonly (Dropped & { problem: string })[],
  lists: readonly Listed[],
  limits: PlanLimits,
): Plan {
  const taken = new Set<string>();
  const entries: Entry[] = [];
  const byName = new Map<string, Entry>();
  for (const { path, blob, problem } of pictures) {
    const id = uniqueId(path, taken);
    taken.add(id);
    const entry: Entry = { id, text: "", payload: null, picture: blob, source: path, problem };
    entries.push(entry);
    for (const name of [path, baseName(path)]) if (!byName.has(name)) byName.set(name, entry);
  }
  const problems = lists.flatMap((list) => list.problems);
  for (const line of lists.flatMap((list) => list.lines)) {
    const picture = byName.get(line.file ?? line.id ?? "") ?? byName.get(baseName(line.file ?? ""));
    if (picture) {
      if (line.text) picture.text = line.text;
      if (line.payload) picture.payload = line.payload;
      if (line.id && line.id !== picture.id) {
        taken.delete(picture.id);
        picture.id = uniqueId(line.id, taken);
        taken.add(picture.id);
      }
    } else if (line.file !== undefined) {
      problems.push(`line ${line.number}: there is no picture ${line.file} among the files`);
    } else {
      const id = uniqueId(line.id ?? "", taken);
      taken.add(id);
      entries.push({
        id,
        text: line.text ?? "",
        payload: line.payload ?? null,
        picture: null,
        source: `line ${line.number}`,
        problem: "",
      });
    }
  }
  for (const entry of entries) entry.problem ||= entryProblem(entry, limits);
  return { entries, problems };
}

function entryProblem(entry: Entry, limits: PlanLimits): string {
  if (entry.id.length > LONGEST_ID) return `its id has ${entry.id.length} characters, the most are ${LONGEST_ID}`;
  const characters = [...entry.text].length;
  if (characters > limits.text_characters)
    return `its text has ${characters} characters, the most are ${limits.text_characters}`;
  return "";
}

/** Entries in the order in which they are shown: those with problems first. */
export function problemsFirst(entries: readonly Entry[]): Entry[] {
  return [...entries.filter((entry) => entry.problem), ...entries.filter((entry) => !entry.problem)];
}
