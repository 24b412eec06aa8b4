import { ago, moment } from "../../lib/format.ts";
import { link } from "../../lib/router.ts";
import type { GuardEvent, StreamCard } from "../../lib/types.ts";
import { because, done } from "./condition.ts";
import { keyTitle } from "./parts.tsx";

const SHOWN = 12;

/** What the guards of all streams have done, the newest first. */
export function Events({ cards, now }: { cards: readonly StreamCard[]; now: number }) {
  const events = cards.flatMap((card) =>
    card.tracks.flatMap((track) => track.guard.events.map((event) => ({ ...event, stream: card.name }))),
  );
  events.sort((one, other) => other.time - one.time);
  return (
    <section class="card" aria-labelledby="streams-events">
      <h2 id="streams-events">What the guard did</h2>
      {events.length === 0 ? (
        <p class="muted">
          Nothing so far. The guard watches every batch, and skips it or takes back what it taught when that does harm.
        </p>
      ) : (
        <ol class="streams-feed">
          {events.slice(0, SHOWN).map((event) => (
            <EventLine key={`${event.stream} ${event.track} ${event.time}`} event={event} now={now} named />
          ))}
        </ol>
      )}
      {events.length > SHOWN && (
        <p class="hint">
          The newest {SHOWN} of {events.length}; a stream's page has all of its own.
        </p>
      )}
    </section>
  );
}

const SEVERE = new Set(["rollback", "reset"]);

export function EventLine({ event, now, named = false }: { event: GuardEvent; now: number; named?: boolean }) {
  return (
    <li>
      <time dateTime={new Date(event.time * 1000).toISOString()} title={moment(event.time)}>
        {ago(event.time, now)}
      </time>
      <div>
        {named && (
          <>
            <a href={link("streams", event.stream)}>{event.stream}</a> <small>{keyTitle(event.track)}</small>{" "}
          </>
        )}
        <span>
          <b class={SEVERE.has(event.action) ? "c-bad" : "c-warn"}>{sentenceCase(done(event.action))}</b>:{" "}
          {because(event)}.
        </span>
      </div>
    </li>
  );
}

const sentenceCase = (text: string): string => text.charAt(0).toUpperCase() + text.slice(1);
