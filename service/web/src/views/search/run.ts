// The run that the page sends of a gallery's items.

import { signal } from "@preact/signals";
import { changeMethod } from "../../components/method-select.tsx";
import { get, part, post } from "../../lib/api.ts";
import type { Corruption } from "../../lib/corruptions.ts";
import type { MethodChoice } from "../../lib/methods.ts";
import { fetchedOnce, pause } from "../../lib/patience.ts";
import { loadPicture } from "../../lib/pictures.ts";
import { Runner } from "../../lib/runner.ts";
import { slug } from "../../lib/runs.ts";
import { gallery, show } from "../../lib/state.ts";
import type { Item, ItemPage, Modality, StreamCard } from "../../lib/types.ts";
import { figuresOf, trackOf, type Figures } from "./course.ts";
import { QUICK } from "./methods.ts";
import { other, send, type Asks, type Batch, type Plan } from "./send.ts";

export const kind = signal<Modality>("image");
export const planned = signal<Record<Modality, Corruption | null>>({
  image: { name: "defocus_blur", severity: 5 },
  text: { name: "CS", severity: 7 },
});
export const runner = new Runner<Plan, Batch>({ queries: 512, batchSize: 32, method: QUICK });
/** What the stream's track says of the run's batches, by their place in it. */
export const figures = signal<ReadonlyMap<number, Figures>>(new Map());

const SEED = 1;
const PAGE = 500;
/** Items that a run draws from, at most. */
const MOST_ITEMS = 4096;

/** What the next run's stream is named after. */
export const baseName = (): string => {
  const corruption = planned.value[kind.value];
  return corruption ? slug(corruption) : "clean";
};

const pictureOf = fetchedOnce(loadPicture);

/** Items of which one modality can be asked with and the other be found. Raises Error where there are none. */
async function usableItems(plan: Plan, signal: AbortSignal): Promise<Item[]> {
  const usable = (item: Item) =>
    item.modalities.includes(other(plan.kind)) && (plan.kind === "image" ? item.preview : item.text);
  const found: Item[] = [];
  for (let offset = 0; offset < MOST_ITEMS; offset += PAGE) {
    const path = `/galleries/${part(plan.gallery)}/items?offset=${offset}&limit=${PAGE}`;
    const page = await get<ItemPage>(path, { signal });
    found.push(...page.items.filter(usable));
    if (offset + PAGE >= page.total) break;
  }
  if (found.length > 0) return found;
  const lacks =
    plan.kind === "image" ? "pictures with previews and texts beside them" : "texts with pictures beside them";
  throw new Error(`Gallery "${plan.gallery}" has no ${lacks}, so nothing of which the right answer is known.`);
}

const describe = (name: string, signal: AbortSignal): Promise<StreamCard> =>
  get<StreamCard>(`/admin/streams/${part(name)}`, { signal });

export function start(choice: MethodChoice): Promise<void> {
  const plan: Plan = {
    gallery: gallery.value,
    stream: runner.nameOf(baseName()),
    kind: kind.value,
    corruption: planned.value[kind.value],
    queries: runner.queries.value,
    batch: runner.batchSize.value,
    seed: SEED,
  };
  return runner.start(plan, choice.label, async (signal) => {
    const items = await usableItems(plan, signal);
    if (!(await changeMethod(plan.stream, "retrieve", choice, signal))) return null;
    const before = trackOf(await describe(plan.stream, signal), plan)?.batches ?? 0;
    figures.value = new Map();
    return watched(plan, items, before, signal);
  });
}

/** The run's batches; after each of them the stream's figures are looked at. */
async function* watched(plan: Plan, items: Item[], before: number, signal: AbortSignal): AsyncGenerator<Batch> {
  const byId = new Map(items.map((item) => [item.id, item]));
  const asks: Asks = {
    clean: async (id, kind) => {
      const item = byId.get(id)!;
      return kind === "image" ? { image: await pictureOf(item.preview!) } : { text: item.text! };
    },
    post: (path, body, signal) => post(path, body, { signal }),
    waiting: runner.waiting,
    sleep: pause,
  };
  for await (const batch of send(plan, [...byId.keys()], asks, signal)) {
    yield batch;
    await look(plan, before, signal);
  }
}

/** What the stream's figures are after a batch. The run goes on without them where they cannot be had. */
async function look(plan: Plan, before: number, signal: AbortSignal): Promise<void> {
  try {
    const card = await describe(plan.stream, signal);
    show(card);
    const track = trackOf(card, plan);
    figures.value = new Map([...figures.value, ...figuresOf(track?.recent, track?.batches ?? 0, before)]);
  } catch {
    // The next batch brings those of this one too.
  }
}
