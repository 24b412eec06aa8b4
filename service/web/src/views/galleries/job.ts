// The one upload that the page runs; it goes on while other views are looked at.

import { signal } from "@preact/signals";
import { part, post } from "../../lib/api.ts";
import { prepared } from "../../lib/pictures.ts";
import { pythonCall } from "../../lib/snippets.ts";
import { config } from "../../lib/state.ts";
import type { Json } from "../../lib/types.ts";
import { galleriesChanged } from "./changes.ts";
import type { Entry } from "./plan.ts";
import { type Report, settled, upload, type WireItem } from "./upload.ts";

export interface Job {
  gallery: string;
  report: Report;
  running: boolean;
  stopping: boolean;
  /** Items a second, since it began. */
  rate: number | null;
  stop: () => void;
}

export const job = signal<Job | null>(null);

const REFRESH_MS = 2000;

/** Begin, unless one runs already. */
export async function begin(gallery: string, entries: readonly Entry[]): Promise<void> {
  const limits = config.value?.limits;
  if (job.value?.running || !limits) return;
  const stopper = new AbortController();
  const started = performance.now();
  let refreshed = started;
  let first = true;
  const show = (news: Partial<Job>) => {
    if (job.value) job.value = { ...job.value, ...news };
  };
  const stop = () => {
    stopper.abort();
    show({ stopping: true });
  };
  const empty: Report = { total: entries.length, added: 0, replaced: 0, failed: [], left: [], waiting: "" };
  job.value = { gallery, report: empty, running: true, stopping: false, rate: null, stop };
  window.addEventListener("beforeunload", askFirst);
  const report = await upload(entries, limits, {
    prepare: (entry) => wireItem(entry, limits.image_bytes),
    send: (items, sent) => {
      const remember = first;
      first = false;
      return send(gallery, items, sent, remember);
    },
    pause: (seconds) => pause(seconds, stopper.signal),
    stop: stopper.signal,
    changed: (news) => {
      const now = performance.now();
      show({ report: news, rate: settled(news) / Math.max(0.001, (now - started) / 1000) });
      if (now - refreshed < REFRESH_MS) return;
      refreshed = now;
      void galleriesChanged();
    },
  });
  window.removeEventListener("beforeunload", askFirst);
  show({ report, running: false });
  await galleriesChanged();
}

const askFirst = (event: BeforeUnloadEvent): void => event.preventDefault();

async function wireItem(entry: Entry, mostBytes: number): Promise<WireItem> {
  const item: WireItem = { id: entry.id };
  if (entry.text) item.text = entry.text;
  if (entry.picture) item.image = await prepared(entry.picture, mostBytes);
  if (entry.payload) item.payload = entry.payload;
  return item;
}

function send(
  gallery: string,
  items: WireItem[],
  entries: readonly Entry[],
  remember: boolean,
): Promise<{ added: number; replaced: number }> {
  const files = entries.filter((entry) => entry.picture).map((entry) => entry.source);
  const named: Json[] = items.map((item, place) =>
    item.image === undefined ? item : { ...item, image: entries[place]?.source ?? "" },
  );
  return post(
    `/galleries/${part(gallery)}/items`,
    { items },
    { remember, files, python: pythonCall("client.upsert_items", [gallery, named]) },
  );
}

function pause(seconds: number, stop: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const timer = window.setTimeout(resolve, seconds * 1000);
    stop.addEventListener("abort", () => {
      window.clearTimeout(timer);
      resolve();
    });
  });
}
