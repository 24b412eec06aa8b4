// What camera and microphone see and hear, asked about once a second.

import { signal } from "@preact/signals";
import { pause } from "../../lib/patience.ts";
import { dataUri } from "../../lib/pictures.ts";
import { messageOf, models } from "../../lib/state.ts";
import { Capture, type Wanted } from "./devices.ts";
import type { Content } from "./send.ts";
import { follow, stopSequence } from "./sequence.ts";
import { heardSeconds } from "./sound.ts";
import type { Sample } from "./state.ts";

export const wanted = signal<Wanted>({ camera: true, microphone: true });
export const capture = signal<Capture | null>(null);
export const opening = signal(false);
/** What is wrong with the devices. */
export const deviceTroubles = signal<string[]>([]);
const EVERY_MS = 1000;
const LOOK_MS = 100;
let opened = 0;

/** Open the devices and ask about what they see and hear, once a second, until stopped. */
export async function goLive(): Promise<void> {
  const mine = ++opened;
  capture.value?.stop();
  opening.value = true;
  deviceTroubles.value = [];
  let made: Capture | null = null;
  try {
    made = await Capture.open(wanted.value, heardSeconds(models.value?.classifier?.audio.frames), (why) => {
      deviceTroubles.value = [...deviceTroubles.value, why];
      if (made && !made.live && capture.value === made) stopSequence();
    });
    deviceTroubles.value = [...deviceTroubles.value, ...made.troubles];
  } catch (error) {
    deviceTroubles.value = [...deviceTroubles.value, messageOf(error)];
  } finally {
    if (mine === opened) opening.value = false;
  }
  if (!made) return;
  // Stopped, or the view was left, while the browser asked.
  if (mine !== opened || !made.live) {
    made.stop();
    return;
  }
  capture.value = made;
  try {
    await follow("live", null, (place, signal) => lookAndListen(made, place, signal));
  } finally {
    made.stop();
    if (capture.value === made) capture.value = null;
  }
}

let lookedAt = 0;

/** The next sample of the devices. Raises AbortError. */
async function lookAndListen(from: Capture, place: number, signal: AbortSignal): Promise<Sample> {
  if (place > 0) await pause(Math.max(0, lookedAt + EVERY_MS - performance.now()), signal);
  for (;;) {
    const sound = from.sound();
    const frame = await from.frame();
    // Both where both are there, so that the first answers are not about half a sample.
    if ((sound || !from.has("microphone")) && (frame || !from.has("camera")) && (sound || frame)) {
      lookedAt = performance.now();
      const content: Content = {};
      if (sound) content.audio = await dataUri(sound);
      if (frame) content.image = await dataUri(frame);
      return {
        name: "now",
        from: "live",
        content,
        files: { audio: "microphone.wav", image: "camera.jpg" },
        truth: null,
      };
    }
    await pause(LOOK_MS, signal);
  }
}

/** Let go of the devices, also of those that the browser is still asking about. */
export function stopLive(): void {
  opened++;
  opening.value = false;
  if (capture.value) {
    stopSequence();
    capture.value.stop();
    capture.value = null;
  }
}
