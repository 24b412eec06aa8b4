// Work that goes on where a server is busy or starts again, and many pieces of it at a time.

import { ApiError } from "./api.ts";

const MOST_TRIES = 6;
const LONGEST_WAIT_S = 60;

/** Seconds until a request that failed is worth another try; null: it is not. */
export function pauseAfter(error: unknown, tries: number): number | null {
  if (!(error instanceof ApiError) || ![0, 429, 503].includes(error.status) || tries >= MOST_TRIES) return null;
  return Math.min(LONGEST_WAIT_S, Math.max(error.retryAfterSeconds ?? 0, 0.5 * 2 ** tries));
}

/** Ends early, with an AbortError, where `signal` says so. */
export const pause = (milliseconds: number, signal: AbortSignal): Promise<void> =>
  new Promise((resolve, reject) => {
    const end = () => {
      clearTimeout(timer);
      reject(new DOMException("stopped", "AbortError"));
    };
    const timer = setTimeout(() => {
      signal.removeEventListener("abort", end);
      resolve();
    }, milliseconds);
    if (signal.aborted) end();
    else signal.addEventListener("abort", end, { once: true });
  });

/** Try again while that makes sense. `waiting` is told what is waited for, and "" when that is over. */
export async function patiently<T>(
  work: () => Promise<T>,
  signal: AbortSignal,
  waiting: (why: string) => void,
  sleep: (milliseconds: number, signal: AbortSignal) => Promise<void> = pause,
): Promise<T> {
  for (let tries = 0; ; tries++) {
    try {
      return await work();
    } catch (error) {
      const seconds = signal.aborted ? null : pauseAfter(error, tries);
      if (seconds === null) throw error;
      waiting(`${(error as ApiError).message}; trying again`);
      await sleep(seconds * 1000, signal);
      waiting("");
    }
  }
}

/** Answers in the order of `values`; at most `most` are worked on at a time. */
export async function everyOne<T, R>(
  values: readonly T[],
  most: number,
  work: (value: T, place: number) => Promise<R>,
): Promise<R[]> {
  const made = new Array<R>(values.length);
  let next = 0;
  const worker = async () => {
    for (let place = next++; place < values.length; place = next++) made[place] = await work(values[place]!, place);
  };
  await Promise.all(Array.from({ length: Math.min(most, values.length) }, worker));
  return made;
}

/** `load`, but what has come once for a key is not asked for again. */
export function fetchedOnce<T, R>(load: (of: T) => Promise<R>, key: (of: T) => string = String): (of: T) => Promise<R> {
  const held = new Map<string, Promise<R>>();
  return (of) => {
    const name = key(of);
    const found = held.get(name) ?? load(of);
    held.set(name, found);
    found.catch(() => held.delete(name));
    return found;
  };
}

/** Whether this is no failure: someone wanted it to end. */
export const isAbort = (error: unknown): boolean => error instanceof DOMException && error.name === "AbortError";
