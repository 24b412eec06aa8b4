// What the page has just done, as a command and as Python.

import type { Call, KeyKind } from "./api.ts";
import type { Json } from "./types.ts";

const DATA_URI = /"data:([a-z]+\/[a-z0-9.+-]+);base64,[A-Za-z0-9+/=]*"/g;

/** Control characters, and those that turn text around: a terminal obeys them, or shows other than it runs. */
const UNSEEN = /[\u007f-\u009f\u200e\u200f\u2028-\u202e\u2066-\u2069]/g;

/** JSON that stays what it looks like when it is pasted; the escapes are Python's, too. */
const plainJson = (value: Json): string =>
  JSON.stringify(value).replace(UNSEEN, (sign) => `\\u${sign.charCodeAt(0).toString(16).padStart(4, "0")}`);

/** A file's name for a shell. Of names that nobody types, with "_" in the place of what cannot be seen. */
function fileName(name: string): string {
  const seen = name.replace(/[\u0000-\u001f]/g, "_").replace(UNSEEN, "_");
  const path = seen.startsWith("-") ? `./${seen}` : seen;
  return /^[\w./-]+$/.test(path) ? path : quoted(path);
}

/** In single quotes for a shell. */
const quoted = (text: string): string => `'${text.replaceAll("'", `'\\''`)}'`;

/** A body for the shell: files that it holds are read from disk there. */
function shellBody(body: Json, files: readonly string[]): string {
  let place = 0;
  return quoted(plainJson(body)).replaceAll(DATA_URI, (_, type: string) => {
    const file = files[place++] ?? "FILE";
    return `"data:${type};base64,'"$(base64 -w0 ${fileName(file)})"'"`;
  });
}

export function asCurl(call: Call, origin: string, key: KeyKind | null): string {
  // A command's argument ends at 128 KiB in Linux, less than a photo has; what printf writes, a shell's own, does not.
  const piped = Boolean(call.files?.length) && call.body !== undefined;
  const command = `curl -s${call.method === "GET" ? "" : ` -X ${call.method}`} ${quoted(origin + call.path)}`;
  const lines = piped ? [`printf %s ${shellBody(call.body ?? null, call.files ?? [])} |`, command] : [command];
  if (key) lines.push(`-H "Authorization: Bearer $ATTUNE_${key.toUpperCase()}_KEY"`);
  if (call.upload) {
    lines.push(`-H ${quoted(`Content-Type: ${call.upload.type || "application/octet-stream"}`)}`);
    lines.push(`--data-binary @${fileName(call.upload.file)}`);
  } else if (call.body !== undefined) {
    lines.push("-H 'Content-Type: application/json'");
    lines.push(piped ? "-d @-" : `-d ${shellBody(call.body, [])}`);
  }
  return lines.join(" \\\n  ");
}

/** Any JSON value as Python writes it. */
export function pythonValue(value: Json): string {
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (Array.isArray(value)) return `[${value.map(pythonValue).join(", ")}]`;
  if (typeof value === "object") {
    return `{${Object.entries(value)
      .map(([name, inner]) => `${plainJson(name)}: ${pythonValue(inner)}`)
      .join(", ")}}`;
  }
  return plainJson(value);
}

/** `name(first, key=value)`, without what is undefined. */
export function pythonCall(name: string, positional: Json[], named: Record<string, Json | undefined> = {}): string {
  const parts = positional.map(pythonValue);
  for (const [key, value] of Object.entries(named)) {
    if (value !== undefined) parts.push(`${key}=${pythonValue(value)}`);
  }
  return `${name}(${parts.join(", ")})`;
}

export function asPython(call: Call, origin: string, key: KeyKind | null): string {
  if (call.python) {
    const given = key ? `, ${key}_key="..."` : "";
    const lines = call.python
      .split("\n")
      .map((line) => `    ${line}`)
      .join("\n");
    return `from attune import Client\n\nwith Client(${JSON.stringify(origin)}${given}) as client:\n${lines}\n`;
  }
  const headers = key ? ', headers={"Authorization": "Bearer ..."}' : "";
  const body = call.body === undefined ? "" : `, json=${pythonValue(shortened(call.body))}`;
  const content = call.upload ? `, content=open(${plainJson(call.upload.file)}, "rb").read()` : "";
  return `import httpx\n\nanswer = httpx.request(${JSON.stringify(call.method)}, ${JSON.stringify(origin + call.path)}${body}${content}${headers})\nprint(answer.json())\n`;
}

function shortened(value: Json): Json {
  if (typeof value === "string")
    return value.length > 200 && value.startsWith("data:") ? `${value.slice(0, 40)}...` : value;
  if (Array.isArray(value)) return value.map(shortened);
  if (value !== null && typeof value === "object") {
    return Object.fromEntries(Object.entries(value).map(([name, inner]) => [name, shortened(inner)]));
  }
  return value;
}
