// Items to the server, in requests within its limits; a bad item costs itself alone.

import type { ApiError } from "../../lib/api.ts";
import type { Json } from "../../lib/types.ts";
import type { Entry } from "./plan.ts";

export type WireItem = { [name: string]: Json };

interface UploadLimits {
  items: number;
  body_bytes: number;
}

/** What an upload needs of the world. */
export interface Means {
  /** Raises Error where the picture cannot be read. */
  prepare: (entry: Entry) => Promise<WireItem>;
  /** Raises ApiError. */
  send: (items: WireItem[], entries: readonly Entry[]) => Promise<{ added: number; replaced: number }>;
  /** Returns at once where the signal has fired. */
  pause: (seconds: number) => Promise<void>;
  /** Fires when no more is to be sent; the request under way is waited for. */
  stop: AbortSignal;
  changed: (report: Report) => void;
}

interface Failed {
  entry: Entry;
  reason: string;
}

export interface Report {
  total: number;
  added: number;
  replaced: number;
  failed: readonly Failed[];
  /** Neither sent nor refused, after a stop. */
  left: readonly Entry[];
  /** Why the server is being waited for; "": it is not. */
  waiting: string;
}

/** So that the bar moves, and a stop does not take long. */
const MOST_ITEMS = 24;
const MOST_BYTES = 6 << 20;
const ENVELOPE_BYTES = 64;
const MOST_TRIES = 8;
const LONGEST_PAUSE_SECONDS = 30;
/** After these it may be one item's fault, even where the server does not say whose; after others nothing else goes well either. */
const PERHAPS_ONE = new Set([400, 413, 422]);

interface Ready {
  entry: Entry;
  item: WireItem;
  bytes: number;
}

/** Send all. Returns when everything is in, refused or left. */
export async function upload(entries: readonly Entry[], limits: UploadLimits, means: Means): Promise<Report> {
  const run = new Run(entries.length, means);
  const mostItems = Math.min(limits.items, MOST_ITEMS);
  const room = limits.body_bytes - ENVELOPE_BYTES;
  const mostBytes = Math.min(room, MOST_BYTES);
  let batch: Ready[] = [];
  let bytes = 0;
  let next = 0;
  const flush = async (): Promise<void> => {
    const full = batch;
    batch = [];
    bytes = 0;
    await run.deliver(full);
  };
  for (; next < entries.length && !run.over; next++) {
    const entry = entries[next]!;
    const ready = await run.prepared(entry);
    if (!ready) continue;
    if (ready.bytes > room) {
      run.fail([ready], "it is larger than one request can be");
      continue;
    }
    if (batch.length > 0 && bytes + ready.bytes > mostBytes) await flush();
    batch.push(ready);
    bytes += ready.bytes;
    if (batch.length >= mostItems) await flush();
  }
  if (batch.length > 0) await flush();
  run.leave(entries.slice(next));
  return run.report;
}

class Run {
  report: Report;
  /** Why there is no point in going on. */
  private hopeless = "";

  constructor(
    total: number,
    private readonly means: Means,
  ) {
    this.report = { total, added: 0, replaced: 0, failed: [], left: [], waiting: "" };
  }

  get over(): boolean {
    return this.hopeless !== "" || this.means.stop.aborted;
  }

  async prepared(entry: Entry): Promise<Ready | null> {
    try {
      const item = await this.means.prepare(entry);
      return { entry, item, bytes: new TextEncoder().encode(JSON.stringify(item)).length + 1 };
    } catch (error) {
      this.update({ failed: [...this.report.failed, { entry, reason: messageOf(error) }] });
      return null;
    }
  }

  fail(some: readonly Ready[], reason: string): void {
    this.update({ failed: [...this.report.failed, ...some.map(({ entry }) => ({ entry, reason }))] });
  }

  leave(entries: readonly Entry[]): void {
    if (entries.length === 0) return;
    if (this.hopeless)
      this.update({
        failed: [...this.report.failed, ...entries.map((entry) => ({ entry, reason: `not sent: ${this.hopeless}` }))],
      });
    else this.update({ left: [...this.report.left, ...entries] });
  }

  /** One request, again and again without those that the server names, until it takes the rest. */
  async deliver(batch: readonly Ready[]): Promise<void> {
    let rest = batch;
    for (let tries = 1; rest.length > 0;) {
      if (this.over) return this.leave(rest.map(({ entry }) => entry));
      try {
        const { added, replaced } = await this.means.send(
          rest.map(({ item }) => item),
          rest.map(({ entry }) => entry),
        );
        return this.update({
          added: this.report.added + added,
          replaced: this.report.replaced + replaced,
          waiting: "",
        });
      } catch (error) {
        const failure = error as ApiError;
        const pause = tries < MOST_TRIES ? pauseSeconds(failure, tries) : null;
        if (pause !== null) {
          tries++;
          this.update({ waiting: failure.message });
          await this.means.pause(pause);
          continue;
        }
        this.update({ waiting: "" });
        const named = refusedItems(failure);
        const bad = rest.filter((_, place) => named.has(place));
        if (bad.length > 0) {
          for (const one of bad) this.fail([one], named.get(rest.indexOf(one)) ?? failure.message);
          rest = rest.filter((one) => !bad.includes(one));
        } else if (rest.length > 1 && PERHAPS_ONE.has(failure.status)) {
          const middle = Math.ceil(rest.length / 2);
          await this.deliver(rest.slice(0, middle));
          rest = rest.slice(middle);
        } else {
          if (!PERHAPS_ONE.has(failure.status)) this.hopeless = failure.message;
          return this.fail(rest, failure.message);
        }
      }
    }
  }

  private update(news: Partial<Report>): void {
    this.report = { ...this.report, ...news };
    this.means.changed(this.report);
  }
}

/** How long to wait before the same request again; null: that is of no use. */
export function pauseSeconds(failure: Pick<ApiError, "status" | "retryAfterSeconds">, tries: number): number | null {
  if (failure.status === 429 || failure.status === 503)
    return Math.min(failure.retryAfterSeconds ?? tries, LONGEST_PAUSE_SECONDS);
  if (failure.status === 0 || failure.status === 502) return Math.min(2 ** (tries - 1), LONGEST_PAUSE_SECONDS);
  return null;
}

const NAMED = /^items\[(\d+)\](?:\.[\w.]+)?/;

/** Places of the items that the server names, with what it says of each. */
export function refusedItems(failure: Pick<ApiError, "status" | "message" | "details">): Map<number, string> {
  const found = new Map<number, string>();
  if (!PERHAPS_ONE.has(failure.status)) return found;
  const { errors, field } = failure.details;
  const note = (where: unknown, what: string) => {
    const place = typeof where === "string" ? NAMED.exec(where)?.[1] : undefined;
    if (place !== undefined && !found.has(Number(place)))
      found.set(Number(place), what.replace(/^items\[\d+\](\.[\w.]+)?: /, ""));
  };
  if (Array.isArray(errors)) {
    for (const one of errors) {
      if (typeof one === "object" && one !== null && !Array.isArray(one))
        note(one.field, String(one.message ?? failure.message));
    }
  }
  note(field, failure.message);
  if (found.size === 0) note(failure.message, failure.message);
  return found;
}

const messageOf = (error: unknown): string => (error instanceof Error ? error.message : String(error));

/** Items that are done with, one way or the other. */
export const settled = (report: Report): number => report.added + report.replaced + report.failed.length;
