// What the components of this view share: the time, one stream, and work that is under way.

import { computed } from "@preact/signals";
import { useCallback, useEffect, useRef, useState } from "preact/hooks";
import { ApiError, get, keys, part } from "../../lib/api.ts";
import { connection, messageOf, server, streams, tell } from "../../lib/state.ts";
import type { History, StreamCard, Track } from "../../lib/types.ts";
import { joined, NOTHING } from "./history.ts";

/** The server's time in seconds; while it is not heard of, this machine's. */
export const clock = computed(() => Math.floor(server.value?.at ?? Date.now() / 1000));

/** Streams that are not told live are asked for so often. */
const ASKED_MS = 5000;

export interface Found {
  card: StreamCard | null;
  state: "loading" | "there" | "gone" | "locked" | "failed";
  why: string;
  again: () => void;
}

/** One stream: as the events tell, else asked for. A card of a stream that is gone stays for as long as it is looked at. */
export function useStream(name: string): Found {
  const live = streams.value.get(name) ?? null;
  const [asked, setAsked] = useState<Omit<Found, "again">>({ card: null, state: "loading", why: "" });
  const [tries, setTries] = useState(0);
  const seen = useRef<StreamCard | null>(null);
  if (live) seen.current = live;
  const missing = live === null;
  const connected = connection.value === "live";
  const held = keys.value;
  useEffect(() => {
    if (!missing) return undefined;
    const controller = new AbortController();
    get<StreamCard>(`/admin/streams/${part(name)}`, { signal: controller.signal }).then(
      (card) => setAsked({ card, state: "there", why: "" }),
      (error: unknown) => {
        if (controller.signal.aborted) return;
        const status = error instanceof ApiError ? error.status : 0;
        setAsked((before) => ({
          card: before.card,
          state: status === 404 ? "gone" : status === 401 ? "locked" : "failed",
          why: messageOf(error),
        }));
      },
    );
    return () => controller.abort();
  }, [name, missing, connected, tries, held]);
  const poll = missing && asked.state === "there";
  useEffect(() => {
    if (!poll) return undefined;
    const timer = window.setInterval(() => setTries((count) => count + 1), ASKED_MS);
    return () => window.clearInterval(timer);
  }, [poll]);
  const again = useCallback(() => setTries((count) => count + 1), []);
  if (live) return { card: live, state: "there", why: "", again };
  return { ...asked, card: asked.card ?? seen.current, again };
}

/** One piece of work at a time. `busy`: the name of that under way; `run` tells what fails and answers whether it did not. */
export function useWork(): { busy: string; run: (name: string, work: () => Promise<unknown>) => Promise<boolean> } {
  const [busy, setBusy] = useState("");
  const run = useCallback(async (name: string, work: () => Promise<unknown>) => {
    setBusy(name);
    try {
      return await tell(work);
    } finally {
      setBusy("");
    }
  }, []);
  return { busy, run };
}

export const PHONE = "(max-width: 760px)";

/** Whether the window is like this, as it changes. */
export function useMedia(query: string): boolean {
  const [matches, setMatches] = useState(() => window.matchMedia(query).matches);
  useEffect(() => {
    const media = window.matchMedia(query);
    const change = () => setMatches(media.matches);
    media.addEventListener("change", change);
    return () => media.removeEventListener("change", change);
  }, [query]);
  return matches;
}

export const keyOf = ({ gallery, direction }: Track): string => `${gallery}/${direction}`;

/** The past of each track, kept live: asked for once, then what the card tells is appended. */
export function useHistory(name: string, card: StreamCard): Record<string, History> {
  const known = useRef<Record<string, History>>({});
  const [asked, setAsked] = useState(false);
  const [, setTold] = useState(0);
  let whole = asked;
  const next: Record<string, History> = {};
  for (const track of card.tracks) {
    const key = keyOf(track);
    const { history, whole: complete } = joined(known.current[key] ?? NOTHING, track);
    next[key] = history;
    whole &&= complete;
  }
  known.current = next;
  const connected = connection.value === "live";
  useEffect(() => {
    if (whole) return undefined;
    const controller = new AbortController();
    get<{ tracks: Record<string, History> }>(`/admin/streams/${part(name)}/history`, {
      signal: controller.signal,
    }).then(
      ({ tracks }) => {
        known.current = tracks;
        setAsked(true);
        setTold((count) => count + 1);
      },
      () => undefined, // What the card tells is shown; the next one asks again.
    );
    return () => controller.abort();
  }, [name, whole || card, connected]);
  return next;
}
