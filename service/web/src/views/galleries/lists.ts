// Files that say something of items: captions by file name, and items line by line.

import type { Json } from "../../lib/types.ts";

export type Payload = Record<string, Json>;

/** One line: the caption of a picture (`file`), or an item of its own (`id`). */
export interface Line {
  number: number;
  file?: string;
  id?: string;
  text?: string;
  payload?: Payload;
}

export interface Listed {
  lines: Line[];
  problems: string[];
}

const LISTS = /\.(tsv|csv|txt|jsonl|ndjson)$/i;

export const isList = (name: string): boolean => LISTS.test(name);

/** `name` as people say it: without folders. */
export const baseName = (name: string): string =>
  name.slice(Math.max(name.lastIndexOf("/"), name.lastIndexOf("\\")) + 1);

const stemOf = (name: string): string => baseName(name).replace(/\.[^.]*$/, "");

/**
 * What a list says. Tables (.tsv, .csv, .txt) are FILE, CAPTION with or without a head line; a .txt without tabs that
 * is named as a picture is that picture's caption. JSON lines with `image` or `file` are of that picture.
 */
export function readList(name: string, text: string, pictures: readonly string[]): Listed {
  const content = text.replace(/^\uFEFF/, "");
  if (/\.(jsonl|ndjson)$/i.test(name)) return readJsonLines(name, content);
  if (/\.csv$/i.test(name)) return readTable(name, csvRows(content));
  const rows = content.split(/\r?\n/).map((line, place) => ({ number: place + 1, cells: line.split("\t") }));
  if (/\.txt$/i.test(name) && !content.includes("\t")) {
    const picture = pictures.find((one) => stemOf(one) === stemOf(name));
    if (picture)
      return { lines: content.trim() ? [{ number: 1, file: picture, text: content.trim() }] : [], problems: [] };
  }
  return readTable(name, rows);
}

interface Row {
  number: number;
  cells: string[];
}

const HEADS = new Set(["file", "filename", "file_name", "image", "picture"]);

function readTable(name: string, rows: Row[]): Listed {
  const lines: Line[] = [];
  const problems: string[] = [];
  const filled = rows.filter(({ cells }) => cells.some((cell) => cell.trim() !== ""));
  filled.forEach(({ number, cells }, place) => {
    const [file = "", caption] = cells.map((cell) => cell.trim());
    if (place === 0 && HEADS.has(file.toLowerCase())) return;
    if (caption === undefined || file === "") problems.push(`${name}, line ${number}: not FILE and CAPTION`);
    else if (caption !== "") lines.push({ number, file, text: caption });
  });
  return { lines, problems };
}

/** Rows of comma-separated values; quotes hold commas, line ends and doubled quotes. */
function csvRows(content: string): Row[] {
  const rows: Row[] = [];
  let cells: string[] = [];
  let line = 1;
  let first = 1;
  const cell = /(?:"((?:[^"]|"")*)"|([^",\r\n]*))(,|\r?\n|$)/gy;
  while (cell.lastIndex < content.length) {
    const start = cell.lastIndex;
    const found = cell.exec(content);
    if (!found) {
      // A quote out of place: the rest of the line as it stands.
      const end = content.indexOf("\n", start);
      cells.push(content.slice(start, end < 0 ? content.length : end));
      cell.lastIndex = end < 0 ? content.length : end + 1;
    } else {
      cells.push(found[1] === undefined ? (found[2] ?? "") : found[1].replaceAll('""', '"'));
    }
    const taken = content.slice(start, cell.lastIndex);
    line += taken.split("\n").length - 1;
    if (found?.[3] === ",") continue;
    rows.push({ number: first, cells });
    cells = [];
    first = line;
  }
  if (cells.length > 0) rows.push({ number: first, cells });
  return rows;
}

const FIELDS = new Set(["id", "text", "caption", "image", "file", "payload"]);

function readJsonLines(name: string, content: string): Listed {
  const lines: Line[] = [];
  const problems: string[] = [];
  content.split(/\r?\n/).forEach((text, place) => {
    if (text.trim() === "") return;
    const read = jsonLine(text, place + 1);
    if (typeof read === "string") problems.push(`${name}, line ${place + 1}: ${read}`);
    else lines.push(read);
  });
  return { lines, problems };
}

/** The line, or what is wrong with it. */
function jsonLine(text: string, number: number): Line | string {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    return "not JSON";
  }
  if (!isObject(value)) return "not a JSON object";
  const unknown = Object.keys(value).find((key) => !FIELDS.has(key));
  if (unknown !== undefined) return `“${unknown}” is none of id, text, image, payload`;
  const line: Line = { number };
  for (const key of ["id", "text", "caption", "image", "file"] as const) {
    const said = value[key];
    if (said === undefined || said === null) continue;
    if (typeof said !== "string") return `“${key}” is no text`;
    if (key === "id") line.id = said;
    else line[key === "text" || key === "caption" ? "text" : "file"] = said;
  }
  if (value.payload !== undefined && value.payload !== null) {
    if (!isObject(value.payload)) return "“payload” is no JSON object";
    line.payload = value.payload;
  }
  if (line.file === undefined && !line.id) return "an “id” is missing";
  if (line.file === undefined && !line.text?.trim()) return "a “text” or an “image” is missing";
  return line;
}

export const isObject = (value: unknown): value is Payload =>
  typeof value === "object" && value !== null && !Array.isArray(value);
