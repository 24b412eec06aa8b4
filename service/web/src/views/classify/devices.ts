// Camera and microphone: opened, looked at, and let go of.

import { LastSamples, wav } from "./sound.ts";

export interface Wanted {
  camera: boolean;
  microphone: boolean;
}

type Kind = keyof Wanted;

const NAMES: Record<Kind, string> = { camera: "The camera", microphone: "The microphone" };
const CONSTRAINTS: Record<Kind, MediaStreamConstraints> = {
  camera: { video: { width: { ideal: 640 }, height: { ideal: 480 } } },
  // What is made for calls takes away the very sounds that are to be named.
  microphone: { audio: { echoCancellation: false, noiseSuppression: false, autoGainControl: false } },
};

/** Why the browser lets no page at this address have a camera; empty: it does. */
export function whyNever(secure: boolean, has: boolean): string {
  if (!secure)
    return "Browsers give camera and microphone to pages over https, or on localhost, only. This page came over plain http.";
  return has ? "" : "This browser gives pages no camera or microphone.";
}

/** What went wrong with a device, for people. */
export function whyNot(error: unknown, kind: Kind): string {
  const name = NAMES[kind];
  switch (error instanceof DOMException ? error.name : "") {
    case "NotAllowedError":
    case "SecurityError":
      return `${name} was not allowed. The lock or camera sign beside the address changes that.`;
    case "NotFoundError":
    case "OverconstrainedError":
      return `${name} was not found: none is connected.`;
    case "NotReadableError":
    case "AbortError":
      return `${name} cannot be used now; another program may hold it.`;
    default:
      return `${name} cannot be used: ${error instanceof Error ? error.message : String(error)}`;
  }
}

interface Opened {
  media: MediaStream;
  troubles: string[];
}

/** All that is wanted with one question to the person; where that fails, each by itself. */
async function opened(wanted: Wanted): Promise<Opened> {
  const kinds = (["camera", "microphone"] as const).filter((kind) => wanted[kind]);
  if (kinds.length === 2) {
    try {
      return {
        media: await navigator.mediaDevices.getUserMedia({ ...CONSTRAINTS.camera, ...CONSTRAINTS.microphone }),
        troubles: [],
      };
    } catch {
      // One of the two is to blame; the other may do.
    }
  }
  const media = new MediaStream();
  const troubles: string[] = [];
  for (const kind of kinds) {
    try {
      for (const track of (await navigator.mediaDevices.getUserMedia(CONSTRAINTS[kind])).getTracks())
        media.addTrack(track);
    } catch (error) {
      troubles.push(whyNot(error, kind));
    }
  }
  return { media, troubles };
}

/** Longest side of the frames that are sent, in pixels. */
const FRAME_PIXELS = 384;

export class Capture {
  private audio: AudioContext | null = null;
  private heard: LastSamples | null = null;
  private video: HTMLVideoElement | null = null;

  private constructor(
    readonly media: MediaStream,
    readonly troubles: string[],
    lost: (why: string) => void,
  ) {
    for (const track of media.getTracks()) {
      track.addEventListener("ended", () => {
        lost(`${NAMES[track.kind === "video" ? "camera" : "microphone"]} is gone: unplugged, or taken back.`);
      });
    }
  }

  /** Keeps the last `seconds` of sound; `lost` is told when a device goes away. Where nothing could be opened, `live` is false. */
  static async open(wanted: Wanted, seconds: number, lost: (why: string) => void): Promise<Capture> {
    const { media, troubles } = await opened(wanted);
    const made = new Capture(media, troubles, lost);
    try {
      if (media.getAudioTracks().length > 0) await made.listen(seconds);
    } catch (error) {
      made.stop();
      throw error;
    }
    return made;
  }

  get live(): boolean {
    return this.media.getTracks().some((track) => track.readyState === "live");
  }

  has(kind: Kind): boolean {
    return this.media
      .getTracks()
      .some((track) => track.readyState === "live" && track.kind === (kind === "camera" ? "video" : "audio"));
  }

  private async listen(seconds: number): Promise<void> {
    const context = (this.audio = new AudioContext());
    await context.audioWorklet.addModule(RECORDER_URL);
    const heard = (this.heard = new LastSamples(Math.round(seconds * context.sampleRate)));
    const recorder = new AudioWorkletNode(context, "recorder", {
      numberOfOutputs: 0,
      channelCount: 1,
      channelCountMode: "explicit",
    });
    recorder.port.onmessage = ({ data }: MessageEvent<Float32Array>) => heard.add(data);
    context.createMediaStreamSource(this.media).connect(recorder);
    await context.resume();
  }

  /** Show the camera in `video`; frames are taken from there. */
  watch(video: HTMLVideoElement | null): void {
    this.video = video;
    if (!video || !this.has("camera")) return;
    video.srcObject = this.media;
    void video.play().catch(() => undefined);
  }

  /** The picture now; null: there is none (yet). */
  async frame(): Promise<Blob | null> {
    const video = this.video;
    if (!video || !this.has("camera") || video.readyState < HTMLMediaElement.HAVE_CURRENT_DATA) return null;
    const scale = Math.min(1, FRAME_PIXELS / Math.max(video.videoWidth, video.videoHeight));
    const canvas = document.createElement("canvas");
    canvas.width = Math.max(1, Math.round(video.videoWidth * scale));
    canvas.height = Math.max(1, Math.round(video.videoHeight * scale));
    canvas.getContext("2d")?.drawImage(video, 0, 0, canvas.width, canvas.height);
    return new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.9));
  }

  /** The last seconds as WAV; null: so much was not heard yet. */
  sound(): Blob | null {
    return this.has("microphone") && this.heard?.full && this.audio
      ? wav(this.heard.samples(), this.audio.sampleRate)
      : null;
  }

  stop(): void {
    for (const track of this.media.getTracks()) track.stop();
    if (this.video) this.video.srcObject = null;
    if (this.audio && this.audio.state !== "closed") void this.audio.close();
  }
}
