// Small things that the list and the page of a stream both show.

import { Badge } from "../../components/fields.tsx";
import { connection, doubt, refusal, unlock } from "../../lib/state.ts";
import { KIND, type Condition } from "./condition.ts";

export const StateBadge = ({ condition }: { condition: Condition }) => (
  <Badge kind={KIND[condition.name]} title={condition.why}>
    {condition.text}
  </Badge>
);

const GALLERIES: Record<string, string> = { classes: "classifier" };

/** A track's gallery and direction for people: "demo · text → image". */
export function trackTitle({ gallery, direction }: { gallery: string; direction: string }): string {
  const place = gallery.startsWith("labels:") ? "labels given with the query" : (GALLERIES[gallery] ?? gallery);
  return `${place} · ${direction.replace("->", " → ").replace("+", " and ")}`;
}

/** The same from its key, `demo/text->image`. */
export function keyTitle(key: string): string {
  const cut = key.lastIndexOf("/");
  return trackTitle({ gallery: key.slice(0, cut), direction: key.slice(cut + 1) });
}

/** In the place of what nobody may see without the key. */
export function Locked() {
  return (
    <section class="card empty">
      <h2>Locked</h2>
      <p>What streams have learned is shown to whoever has the admin key of this server.</p>
      <button type="button" class="primary" onClick={() => void unlock()}>
        Enter the admin key
      </button>
    </section>
  );
}

/** Says that what is shown is not up to date. */
export function Stale() {
  const lost = connection.value === "lost";
  const why = lost ? refusal.value || "the connection is lost" : doubt.value;
  if (!why) return null;
  return (
    <p class="streams-stale" role="status">
      {why.charAt(0).toUpperCase() + why.slice(1)}. This is how things stood
      {lost ? "; the page tries to connect again by itself." : "."}
    </p>
  );
}
