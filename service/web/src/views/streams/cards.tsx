import { useMemo } from "preact/hooks";
import { ago, count } from "../../lib/format.ts";
import { link } from "../../lib/router.ts";
import { batchesOf, gatheredOf, methodsOf, type Row } from "./order.ts";
import { StateBadge } from "./parts.tsx";
import { nameOfTrack, Trend, TRENDS } from "./row.tsx";

/** Streams on a phone, a card each. */
export function Cards({ rows, now }: { rows: Row[]; now: number }) {
  return (
    <ul class="streams-cards">
      {rows.map((row) => (
        <CardRow key={row.card.name} row={row} seen={ago(row.card.last_seen, now)} />
      ))}
    </ul>
  );
}

function CardRow({ row, seen }: { row: Row; seen: string }) {
  const { card, condition, track } = row;
  const { applied, skipped, undone } = batchesOf(card);
  return useMemo(
    () => (
      <li>
        <div class="row spread">
          <a class="streams-card-name" href={link("streams", card.name)}>
            {card.name}
          </a>
          <StateBadge condition={condition} />
        </div>
        <p class="hint">{[nameOfTrack(row), methodsOf(card).join(", "), seen].filter(Boolean).join(" · ")}</p>
        <p class="streams-counts">
          <span>version {card.version}</span>
          <span>{count(applied)} learned from</span>
          {skipped > 0 && <span class="c-warn">{count(skipped)} skipped</span>}
          {undone > 0 && <span class="c-bad">{count(undone)} undone</span>}
          <span>{card.waiting ?? "–"} waiting</span>
          {gatheredOf(card) > 0 && <span>{count(gatheredOf(card))} gathered</span>}
        </p>
        {track && (track.recent?.at.length ?? 0) > 0 && (
          <dl class="streams-facts">
            {TRENDS.map(({ name, label }) => (
              <div key={name}>
                <dt>{label}</dt>
                <dd>
                  <Trend row={row} name={name} label={label} />
                </dd>
              </div>
            ))}
          </dl>
        )}
      </li>
    ),
    [card, condition.text, condition.why, track, seen],
  );
}
