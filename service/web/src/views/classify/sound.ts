// Sounds of the person at the page: encoded, cut, drawn.

import { dataUri } from "../../lib/pictures.ts";

const HEADER_BYTES = 44;

/** A WAV file of one channel, 16 bits. `samples` from -1 to 1; beyond is clipped. */
export function wav(samples: Float32Array, rate: number): Blob {
  const view = new DataView(new ArrayBuffer(HEADER_BYTES + samples.length * 2));
  const text = (place: number, letters: string) =>
    [...letters].forEach((letter, i) => view.setUint8(place + i, letter.charCodeAt(0)));
  text(0, "RIFF");
  view.setUint32(4, view.byteLength - 8, true);
  text(8, "WAVEfmt ");
  view.setUint32(16, 16, true);
  view.setUint16(20, 1, true);
  view.setUint16(22, 1, true);
  view.setUint32(24, rate, true);
  view.setUint32(28, rate * 2, true);
  view.setUint16(32, 2, true);
  view.setUint16(34, 16, true);
  text(36, "data");
  view.setUint32(40, samples.length * 2, true);
  samples.forEach((sample, place) =>
    view.setInt16(HEADER_BYTES + place * 2, Math.round(Math.max(-1, Math.min(1, sample)) * 32767), true),
  );
  return new Blob([view.buffer], { type: "audio/wav" });
}

/** The last `size` samples of what was added. */
export class LastSamples {
  private readonly ring: Float32Array;
  private next = 0;
  private total = 0;

  constructor(readonly size: number) {
    this.ring = new Float32Array(size);
  }

  add(piece: Float32Array): void {
    const kept = piece.length > this.size ? piece.subarray(piece.length - this.size) : piece;
    const first = Math.min(kept.length, this.size - this.next);
    this.ring.set(kept.subarray(0, first), this.next);
    this.ring.set(kept.subarray(first), 0);
    this.next = (this.next + kept.length) % this.size;
    this.total += kept.length;
  }

  get full(): boolean {
    return this.total >= this.size;
  }

  /** In the order they came; fewer than `size` while there are no more. */
  samples(): Float32Array {
    if (!this.full) return this.ring.slice(0, this.total);
    const made = new Float32Array(this.size);
    made.set(this.ring.subarray(this.next), 0);
    made.set(this.ring.subarray(0, this.next), this.size - this.next);
    return made;
  }
}

/** The loudest of each of `columns` equal parts, 0 to 1. */
export function peaks(samples: Float32Array, columns: number): number[] {
  return Array.from({ length: columns }, (_, column) => {
    let most = 0;
    const end = Math.floor(((column + 1) * samples.length) / columns);
    for (let place = Math.floor((column * samples.length) / columns); place < end; place++)
      most = Math.max(most, Math.abs(samples[place]!));
    return Math.min(1, most);
  });
}

/** Seconds that the classifier hears: its frames lie 10 ms apart and are 25 ms long. */
export const heardSeconds = (frames: unknown): number =>
  typeof frames === "number" && frames > 0 ? frames * 0.01 + 0.015 : 10.24;

/** The bytes of a data URI. */
export function bytesOf(uri: string): Uint8Array<ArrayBuffer> {
  return Uint8Array.from(atob(uri.slice(uri.indexOf(",") + 1)), (letter) => letter.charCodeAt(0));
}

interface Decoded {
  samples: Float32Array<ArrayBuffer>;
  rate: number;
  seconds: number;
}

const RATE = 16_000;

/** The first channel at 16 kHz. Raises where the browser cannot read it. */
export async function decoded(bytes: ArrayBuffer): Promise<Decoded> {
  const buffer = await new OfflineAudioContext(1, 1, RATE).decodeAudioData(bytes);
  return { samples: buffer.getChannelData(0), rate: RATE, seconds: buffer.duration };
}

const TAKEN = /^audio\/(x-)?(wav|wave|flac|ogg)$/;
/** What is sent as it is, at most; the rest is cut and made small. */
const SMALL_BYTES = 2 << 20;

interface Limits {
  bytes: number;
  seconds: number;
}

/**
 * A sound file as it goes into a request: as it is where the server reads it and it is small, else decoded here and
 * written as WAV, cut to what the server takes. Raises Error where nobody can read it.
 */
export async function preparedSound(file: Blob, limits: Limits): Promise<string> {
  const taken = TAKEN.test(file.type);
  let sound: Decoded;
  try {
    sound = await decoded(await file.arrayBuffer());
  } catch {
    if (taken && file.size <= limits.bytes) return dataUri(file);
    throw new Error("this is no sound that can be read");
  }
  if (taken && sound.seconds <= limits.seconds && file.size <= Math.min(limits.bytes, SMALL_BYTES))
    return dataUri(file);
  const most = Math.floor(Math.min(limits.seconds, (limits.bytes - HEADER_BYTES) / 2 / sound.rate) * sound.rate);
  return dataUri(wav(sound.samples.subarray(0, most), sound.rate));
}
