// Server-Sent Events over fetch, because EventSource cannot send a key; reconnects by itself.

import { effect, signal } from "@preact/signals";
import { ApiError, failureOf, keyHeaders, keys } from "./api.ts";
import { EventParser, type ServerEvent } from "./parser.ts";

type Connection = "connecting" | "live" | "lost" | "locked";

const FIRST_PAUSE_MS = 500;
const LONGEST_PAUSE_MS = 8000;
/** Where the server is there, and says that it is not ready. */
const LONGEST_REFUSED_MS = 2000;
/** The server sends something every ten seconds; after this long the connection is dead. */
const SILENCE_MS = 25_000;
/** A tab may be looked away from for so long without losing its connection. */
const UNSEEN_MS = 15_000;
const ENDLESS_MS = 2 ** 30;

/** One connection that is kept for as long as the page lives. */
export class EventFeed {
  readonly connection = signal<Connection>("connecting");
  /** What the server says why it does not tell; empty: it does, or says nothing. */
  readonly refusal = signal("");
  private stopped = false;
  private resting = false;
  private restTimer = 0;
  private controller = new AbortController();
  private wake: () => void = () => undefined;

  constructor(
    private readonly path: string,
    private readonly receive: (event: ServerEvent) => void,
    private readonly connected: () => void = () => undefined,
  ) {}

  start(): () => void {
    void this.run();
    let first = true;
    // A new key: try at once, with it.
    const dispose = effect(() => {
      void keys.value;
      if (!first) this.retryNow();
      first = false;
    });
    window.addEventListener("online", this.retryNow);
    document.addEventListener("visibilitychange", this.watchSight);
    return () => {
      this.stopped = true;
      dispose();
      document.removeEventListener("visibilitychange", this.watchSight);
      window.clearTimeout(this.restTimer);
      window.removeEventListener("online", this.retryNow);
      this.controller.abort();
      this.wake();
    };
  }

  readonly retryNow = (): void => {
    if (this.connection.value !== "live") this.wake();
  };

  /** A tab that nobody sees lets its connection go: browsers open six to a server, for all tabs together. */
  private readonly watchSight = (): void => {
    window.clearTimeout(this.restTimer);
    if (document.visibilityState === "hidden") {
      this.restTimer = window.setTimeout(() => {
        this.resting = true;
        this.controller.abort();
      }, UNSEEN_MS);
    } else if (this.resting) {
      this.resting = false;
      this.wake();
    }
  };

  private async run(): Promise<void> {
    let pause = FIRST_PAUSE_MS;
    while (!this.stopped) {
      if (this.resting) {
        this.connection.value = "connecting";
        await this.sleep(ENDLESS_MS);
        continue;
      }
      try {
        await this.listen(() => {
          pause = FIRST_PAUSE_MS;
        });
        this.connection.value = "lost";
        this.refusal.value = "";
      } catch (error) {
        this.connection.value = error instanceof Locked ? "locked" : "lost";
        this.refusal.value = error instanceof ApiError ? error.message : "";
      }
      if (this.stopped) return;
      await this.sleep(this.connection.value === "locked" ? ENDLESS_MS : pause);
      pause = Math.min(pause * 2, this.refusal.value ? LONGEST_REFUSED_MS : LONGEST_PAUSE_MS);
    }
  }

  private async listen(heard: () => void): Promise<void> {
    const controller = new AbortController();
    this.controller = controller;
    let timer = window.setTimeout(() => controller.abort(), SILENCE_MS);
    try {
      const response = await fetch(this.path, {
        headers: { Accept: "text/event-stream", ...keyHeaders("GET", this.path) },
        signal: controller.signal,
        cache: "no-store",
      });
      if (response.status === 401) throw new Locked();
      if (!response.ok || !response.body) throw await failureOf(response);
      this.connection.value = "live";
      this.refusal.value = "";
      this.connected();
      const parser = new EventParser();
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      for (;;) {
        const { done, value } = await reader.read();
        if (done) return;
        heard();
        window.clearTimeout(timer);
        timer = window.setTimeout(() => controller.abort(), SILENCE_MS);
        for (const event of parser.feed(value)) this.receive(event);
      }
    } finally {
      window.clearTimeout(timer);
      controller.abort();
    }
  }

  private sleep(milliseconds: number): Promise<void> {
    return new Promise((resolve) => {
      const timer = window.setTimeout(resolve, milliseconds);
      this.wake = () => {
        window.clearTimeout(timer);
        resolve();
      };
    });
  }
}

class Locked extends Error {}
