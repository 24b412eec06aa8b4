// What all views look at: the server, its models, galleries and streams, kept up to date by its events.

import { computed, signal } from "@preact/signals";
import { ApiError, get, part } from "./api.ts";
import { EventFeed } from "./events.ts";
import { pauseAfter } from "./patience.ts";
import type { ServerEvent } from "./parser.ts";
import type { Config, GalleryCard, Models, ServerFigures, StreamCard } from "./types.ts";

export const config = signal<Config | null>(null);
export const models = signal<Models | null>(null);
/** Whether the encoder is the one that comes along, which has seen nothing but drawn scenes. */
export const demoEncoder = computed(() => models.value?.encoder.name === "scenes-clip");
export const galleries = signal<GalleryCard[]>([]);
export const server = signal<ServerFigures | null>(null);
export const streams = signal<ReadonlyMap<string, StreamCard>>(new Map());
/** How many streams there are; `streams` holds those used last. */
export const totalStreams = signal(0);
/** Why the server's own look at the streams failed; empty: it did not. */
export const trouble = signal("");

/** What the views have in common: whose queries, and what is searched. */
export const stream = signal("console");
export const gallery = signal("");
/** A query that another view hands to the search (an item of `gallery`), which takes it and puts null. */
export const searchFor = signal<{ text: string | null; picture: string | null } | null>(null);

interface Toast {
  id: number;
  text: string;
  kind: "info" | "error";
}

export const toasts = signal<Toast[]>([]);
let lastToast = 0;

export function say(text: string, kind: Toast["kind"] = "info"): void {
  const id = ++lastToast;
  toasts.value = [...toasts.value.slice(-3), { id, text, kind }];
  window.setTimeout(() => dismiss(id), kind === "error" ? 12_000 : 5_000);
}

export function dismiss(id: number): void {
  toasts.value = toasts.value.filter((toast) => toast.id !== id);
}

/** What went wrong, for people. */
export function messageOf(error: unknown): string {
  if (error instanceof ApiError && error.retryAfterSeconds !== null) {
    return `${error.message} (again in ${error.retryAfterSeconds} s)`;
  }
  return error instanceof Error ? error.message : String(error);
}

/** Run something and tell what fails. False: it failed. */
export async function tell(work: () => Promise<unknown>): Promise<boolean> {
  try {
    await work();
    return true;
  } catch (error) {
    if (!(error instanceof DOMException && error.name === "AbortError")) say(messageOf(error), "error");
    return false;
  }
}

export async function loadGalleries(): Promise<void> {
  galleries.value = (await get<{ galleries: GalleryCard[] }>("/galleries")).galleries;
  const names = galleries.value.map((card) => card.name);
  if (!names.includes(gallery.value)) {
    const usual = config.value?.default_gallery ?? "";
    gallery.value = names.includes(usual) ? usual : (names[0] ?? usual);
  }
}

async function loadModels(): Promise<void> {
  models.value = await get<Models>("/models");
}

async function loadAll(): Promise<void> {
  config.value = await get<Config>("/console/config");
  await Promise.all([loadModels(), loadGalleries()]);
}

let loading = false;

/** Load all, and go on trying while the server is not ready; the page is of little use without. */
async function load(): Promise<void> {
  if (loading) return;
  loading = true;
  for (let tries = 0; loading; tries++) {
    try {
      await loadAll();
      loading = false;
    } catch (error) {
      if (tries === 0 && models.value === null) say(messageOf(error), "error");
      // Nothing is changed by asking, so also a worker that was too late is asked again.
      const late = error instanceof ApiError && error.status === 504;
      const seconds = late ? 1 : pauseAfter(error, Math.min(tries, 3));
      loading = seconds !== null;
      if (seconds !== null) await new Promise((resolve) => window.setTimeout(resolve, seconds * 1000));
    }
  }
}

interface StreamsEvent {
  total: number;
  whole: boolean;
  streams: StreamCard[];
  gone: string[];
}

function receive({ event, data }: ServerEvent): void {
  if (event === "server") {
    server.value = JSON.parse(data) as ServerFigures;
  } else if (event === "trouble") {
    trouble.value = (JSON.parse(data) as { message: string }).message;
  } else if (event === "streams") {
    const news = JSON.parse(data) as StreamsEvent;
    const next = new Map(news.whole ? [] : streams.value);
    for (const card of news.streams) next.set(card.name, card);
    for (const name of news.gone) next.delete(name);
    streams.value = next;
    totalStreams.value = news.total;
    if (trouble.value) void load();
    trouble.value = "";
  }
}

const feed = new EventFeed("/admin/events", receive, () => {
  trouble.value = ""; // told anew where there still is some
  void load();
});

export const connection = computed(() => feed.connection.value);
/** What the server answers instead of its events, such as that it is not ready; empty: it tells them, or is not there. */
export const refusal = computed(() => feed.refusal.value);
/** Why what is shown may be out of date though the server is there; empty: it is not. */
export const doubt = computed(
  () => trouble.value || (server.value?.workers === 0 ? "no worker is alive: queries wait" : ""),
);

/** Put a card that an action has answered in its place, before the next event does. */
export function show(card: StreamCard): void {
  const before = streams.value.get(card.name);
  const waiting = before?.waiting ?? null;
  streams.value = new Map(streams.value).set(card.name, { waiting, ...card });
}

export function forget(name: string): void {
  const next = new Map(streams.value);
  next.delete(name);
  streams.value = next;
}

/** Ask for the admin key until one is right. False: the person would rather not, or the server does not answer. */
export async function unlock(): Promise<boolean> {
  try {
    await get(`/admin/streams/${part(stream.value)}`);
    return true;
  } catch (error) {
    return error instanceof ApiError && error.status === 404;
  }
}

export const retryNow = feed.retryNow;

export function start(): void {
  void load();
  feed.start();
}
