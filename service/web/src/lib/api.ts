// Requests to the server this page came from: keys, the one error shape, and the last call for "copy as".

import { signal } from "@preact/signals";
import type { Json } from "./types.ts";

export type KeyKind = "admin" | "api";

/** Held by this page alone, and gone with it. */
export const keys = signal<Record<KeyKind, string>>({ admin: "", api: "" });

/** Which key is being asked for, and why; the dialog of app.tsx answers. */
export const wantedKey = signal<{ kind: KeyKind; why: string; answer: (given: boolean) => void } | null>(null);

export class ApiError extends Error {
  constructor(
    readonly status: number,
    readonly code: string,
    message: string,
    readonly details: Record<string, Json> = {},
    readonly retryAfterSeconds: number | null = null,
  ) {
    super(message);
  }
}

/** Why a key is asked for where none was sent; what the server says then is meant for programs. */
const NEEDED: Record<KeyKind, string> = {
  admin: "This is for whoever has the server's admin key.",
  api: "This server answers to those who have an API key.",
};

/** What was sent, as it can be said again elsewhere. `python`: lines that use `client`, where there is a method. */
export interface Call {
  method: string;
  path: string;
  body?: Json;
  /** Names of the files that stand in the body as data URIs, in their order. */
  files?: string[];
  python?: string;
  upload?: { type: string; file: string };
}

export const lastCall = signal<Call | null>(null);

export interface Options {
  body?: Json | undefined;
  upload?: Blob | undefined;
  uploadName?: string | undefined;
  files?: string[] | undefined;
  python?: string | undefined;
  signal?: AbortSignal | undefined;
  /** Whether "copy as" shall show it. */
  remember?: boolean | undefined;
}

function wantsAdmin(method: string, path: string): boolean {
  return path.startsWith("/admin") || (path.startsWith("/galleries") && method !== "GET") || path.includes("/canaries");
}

/** The kind of key that a request carries; null: there is none to carry. */
export function keyKind(method: string, path: string): KeyKind | null {
  const order: KeyKind[] = wantsAdmin(method, path) ? ["admin", "api"] : ["api", "admin"];
  return order.find((kind) => keys.value[kind] !== "") ?? null;
}

/** Headers of a request that this module does not send itself. */
export function keyHeaders(method: string, path: string): Record<string, string> {
  const kind = keyKind(method, path);
  return kind ? { Authorization: `Bearer ${keys.value[kind]}` } : {};
}

export async function failureOf(response: Response): Promise<ApiError> {
  const retry = Number(response.headers.get("Retry-After"));
  const after = Number.isFinite(retry) && retry > 0 ? retry : null;
  try {
    const { error } = (await response.json()) as {
      error: { code: string; message: string; details: Record<string, Json> };
    };
    return new ApiError(response.status, error.code, error.message, error.details, after);
  } catch {
    return new ApiError(response.status, "no_answer", `the server answered ${response.status}`, {}, after);
  }
}

/** Ask the person at the page for a key. False: they would rather not. */
function askForKey(kind: KeyKind, why: string): Promise<boolean> {
  const before = wantedKey.value;
  return new Promise((resolve) => {
    wantedKey.value = {
      kind,
      why,
      answer: (given) => {
        before?.answer(given);
        resolve(given);
      },
    };
  });
}

async function send(method: string, path: string, options: Options): Promise<Response> {
  const kind: KeyKind = wantsAdmin(method, path) ? "admin" : "api";
  for (;;) {
    const init: RequestInit = {
      method,
      headers: keyHeaders(method, path),
      cache: method === "GET" ? "default" : "no-store",
    };
    if (options.signal) init.signal = options.signal;
    if (options.upload) {
      init.body = options.upload;
      init.headers = { ...init.headers, "Content-Type": options.upload.type || "application/octet-stream" };
    } else if (options.body !== undefined) {
      init.body = JSON.stringify(options.body);
      init.headers = { ...init.headers, "Content-Type": "application/json" };
    }
    let response: Response;
    try {
      response = await fetch(path, init);
    } catch (error) {
      if (options.signal?.aborted) throw error;
      throw new ApiError(0, "unreachable", "the server cannot be reached");
    }
    if (response.ok || response.status === 304) return response;
    const failure = await failureOf(response);
    if (response.status !== 401) throw failure;
    // Of another call a key may have come meanwhile: that is tried before anyone is asked.
    if (keyHeaders(method, path).Authorization !== sent(init)) continue;
    if (!(await askForKey(kind, sent(init) ? failure.message : NEEDED[kind]))) throw failure;
  }
}

const sent = (init: RequestInit): string | undefined => (init.headers as Record<string, string>).Authorization;

/** JSON in, JSON out. Raises ApiError; asks for a key where one is wanted. */
export async function request<T>(method: string, path: string, options: Options = {}): Promise<T> {
  if (options.remember) {
    const call: Call = { method, path };
    if (options.body !== undefined) call.body = options.body;
    if (options.files) call.files = options.files;
    if (options.python) call.python = options.python;
    if (options.upload) call.upload = { type: options.upload.type, file: options.uploadName ?? "FILE" };
    lastCall.value = call;
  }
  const response = await send(method, path, options);
  return (response.status === 204 ? null : await response.json()) as T;
}

/** The bytes of an answer that is no JSON. */
export async function requestBlob(path: string, options: Options = {}): Promise<Blob> {
  return (await send("GET", path, options)).blob();
}

export const get = <T>(path: string, options?: Options): Promise<T> => request<T>("GET", path, options);
export const post = <T>(path: string, body?: Json, options?: Options): Promise<T> =>
  request<T>("POST", path, { ...options, body });
export const put = <T>(path: string, body: Json, options?: Options): Promise<T> =>
  request<T>("PUT", path, { ...options, body });
export const remove = (path: string, options?: Options): Promise<null> => request<null>("DELETE", path, options);

/** One part of a path; browsers would take "." and ".." for steps in it, however they are encoded once. */
export const part = (name: string): string =>
  /^\.\.?$/.test(name) ? name.replaceAll(".", "%252E") : encodeURIComponent(name);
