// Samples that are there to be chosen: clips of the demo, and pictures of the gallery for labels as texts.

import { signal } from "@preact/signals";
import { get, part } from "../../lib/api.ts";
import { loadPicture as load } from "../../lib/pictures.ts";
import { gallery, messageOf } from "../../lib/state.ts";
import type { Clip, Item, ItemPage } from "../../lib/types.ts";
import type { Content } from "./send.ts";
import type { Sample } from "./state.ts";

export const CLIPS = 12;
export const clips = signal<Clip[]>([]);
export const clipsStart = signal(0);
export const clipsTrouble = signal("");

export const listClips = async (start: number, count: number, signal?: AbortSignal): Promise<Clip[]> =>
  (await get<{ clips: Clip[] }>(`/demo/clips?start=${start}&count=${count}`, { signal })).clips;

export async function loadClips(start: number): Promise<void> {
  try {
    clips.value = await listClips(start, CLIPS);
    clipsStart.value = start;
    clipsTrouble.value = "";
  } catch (error) {
    clipsTrouble.value = messageOf(error);
  }
}

export async function contentOf(clip: Clip): Promise<Required<Content>> {
  const [audio, image] = await Promise.all([load(clip.audio), load(clip.image)]);
  return { audio, image };
}

export async function sampleOf(clip: Clip): Promise<Sample> {
  return {
    name: clip.id,
    from: "clips",
    content: await contentOf(clip),
    files: { audio: `${clip.id}.wav`, image: `${clip.id}.png` },
    truth: clip.label,
  };
}

type Pictured = Item & { preview: string };
export const pictures = signal<Pictured[]>([]);
export const picturesStart = signal(0);
export const picturesTrouble = signal("");

/** Those from `start` on that have a preview; from the first again where that was the end. */
export async function loadPictures(start: number): Promise<void> {
  const name = gallery.value;
  if (!name) return;
  try {
    const page = await get<ItemPage>(`/galleries/${part(name)}/items?offset=${start}&limit=${CLIPS}`);
    if (name !== gallery.value) return;
    if (page.items.length === 0 && start > 0) return await loadPictures(0);
    pictures.value = page.items.filter((item): item is Pictured => item.preview !== undefined);
    picturesStart.value = start;
    picturesTrouble.value = "";
  } catch (error) {
    picturesTrouble.value = messageOf(error);
  }
}

export async function sampleOfItem(item: Pictured): Promise<Sample> {
  return {
    name: item.id,
    from: "pictures",
    content: { image: await load(item.preview) },
    files: { image: `${item.id.replace(/[^\w.-]+/g, "_")}.webp` },
    truth: null,
  };
}
