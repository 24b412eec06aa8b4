// The stream that the page sends; it goes on while other views are shown.

import { signal } from "@preact/signals";
import { get, part, post } from "../../lib/api.ts";
import { pause } from "../../lib/patience.ts";
import { loadPicture } from "../../lib/pictures.ts";
import { gallery, messageOf, show } from "../../lib/state.ts";
import type { Item, ItemPage, Modality, StreamCard } from "../../lib/types.ts";
import {
  figuresOf,
  freshName,
  other,
  send,
  trackOf,
  type Asks,
  type Batch,
  type Corruption,
  type Figures,
  type Plan,
} from "./drift.ts";
import { configure } from "./method.tsx";
import { QUICK, type MethodChoice } from "./methods.ts";

export const kind = signal<Modality>("image");
export const planned = signal<Record<Modality, Corruption | null>>({
  image: { name: "defocus_blur", severity: 5 },
  text: { name: "CS", severity: 7 },
});
export const queries = signal(512);
export const batchSize = signal(32);
export const method = signal(QUICK);
/** "": one that is new. */
export const ownName = signal("");

export interface Run {
  phase: "running" | "done" | "stopped" | "failed";
  plan: Plan;
  total: number;
  method: string;
  batches: Batch[];
  figures: ReadonlyMap<number, Figures>;
  waiting: string;
  trouble: string;
}

export const run = signal<Run | null>(null);
export const starting = signal(false);
export const startTrouble = signal("");

const SEED = 1;
const PAGE = 500;
/** Items that a run draws from, at most. */
const MOST_ITEMS = 4096;
const used = new Set<string>();
let controller = new AbortController();

export const nameOf = (taken: Iterable<string>): string =>
  ownName.value || freshName(planned.value[kind.value], new Set([...used, ...taken]));

const pictures = new Map<string, Promise<string>>();

/** A preview, fetched once. */
function pictureOf(path: string): Promise<string> {
  let held = pictures.get(path);
  if (!held) {
    held = loadPicture(path);
    held.catch(() => pictures.delete(path));
    pictures.set(path, held);
  }
  return held;
}

/** Items of which one modality can be asked with and the other be found. */
async function usableItems(plan: Plan, signal: AbortSignal): Promise<Item[]> {
  const found: Item[] = [];
  for (let offset = 0; offset < MOST_ITEMS; offset += PAGE) {
    const page = await get<ItemPage>(`/galleries/${part(plan.gallery)}/items?offset=${offset}&limit=${PAGE}`, {
      signal,
    });
    found.push(
      ...page.items.filter(
        (item) => item.modalities.includes(other(plan.kind)) && (plan.kind === "image" ? item.preview : item.text),
      ),
    );
    if (offset + PAGE >= page.total) break;
  }
  return found;
}

function change(next: Partial<Run>): void {
  if (run.value) run.value = { ...run.value, ...next };
}

export function stop(): void {
  controller.abort();
}

export async function start(name: string, choice: MethodChoice): Promise<void> {
  controller.abort();
  const mine = (controller = new AbortController());
  const { signal } = mine;
  const plan: Plan = {
    gallery: gallery.value,
    stream: name,
    kind: kind.value,
    corruption: planned.value[kind.value],
    queries: queries.value,
    batch: batchSize.value,
    seed: SEED,
  };
  starting.value = true;
  startTrouble.value = "";
  let items: Item[];
  let before: number;
  try {
    items = await usableItems(plan, signal);
    if (items.length === 0) {
      const lacks =
        plan.kind === "image" ? "pictures with previews and texts beside them" : "texts with pictures beside them";
      throw new Error(`Gallery "${plan.gallery}" has no ${lacks}, so nothing of which the right answer is known.`);
    }
    if (!(await configure(name, choice, signal))) return;
    before = trackOf(await describe(name, signal), plan)?.batches ?? 0;
  } catch (error) {
    if (!signal.aborted) startTrouble.value = messageOf(error);
    return;
  } finally {
    starting.value = false;
  }
  used.add(name);
  ownName.value = "";
  run.value = {
    phase: "running",
    plan,
    total: plan.queries,
    method: choice.label,
    batches: [],
    figures: new Map(),
    waiting: "",
    trouble: "",
  };
  await follow(plan, items, before, signal);
}

const describe = (name: string, signal: AbortSignal): Promise<StreamCard> =>
  get<StreamCard>(`/admin/streams/${part(name)}`, { signal });

async function follow(plan: Plan, items: Item[], before: number, signal: AbortSignal): Promise<void> {
  const byId = new Map(items.map((item) => [item.id, item]));
  const asks: Asks = {
    clean: async (id, kind) => {
      const item = byId.get(id)!;
      return kind === "image" ? { image: await pictureOf(item.preview!) } : { text: item.text! };
    },
    post: (path, body, signal) => post(path, body, { signal }),
    waiting: (why) => change({ waiting: why }),
    sleep: pause,
  };
  try {
    for await (const batch of send(plan, [...byId.keys()], asks, signal)) {
      if (signal.aborted) break;
      change({ batches: [...(run.value?.batches ?? []), batch] });
      await look(plan, before, signal);
    }
    change({ phase: signal.aborted ? "stopped" : "done", waiting: "" });
  } catch (error) {
    change({
      phase: signal.aborted ? "stopped" : "failed",
      trouble: signal.aborted ? "" : messageOf(error),
      waiting: "",
    });
  }
}

/** What the stream's figures are after a batch. The run goes on without them where they cannot be had. */
async function look(plan: Plan, before: number, signal: AbortSignal): Promise<void> {
  try {
    const card = await describe(plan.stream, signal);
    show(card);
    const track = trackOf(card, plan);
    const news = figuresOf(track?.recent, track?.batches ?? 0, before);
    change({ figures: new Map([...(run.value?.figures ?? []), ...news]) });
  } catch {
    // The next batch brings those of this one too.
  }
}
