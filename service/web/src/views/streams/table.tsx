import { useMemo } from "preact/hooks";
import { ago } from "../../lib/format.ts";
import { link } from "../../lib/router.ts";
import { methodsOf, type Column, type Row, type Sorting } from "./order.ts";
import { StateBadge } from "./parts.tsx";
import { Batches, nameOfTrack, Queue, Trend, TRENDS } from "./row.tsx";

export const TITLES: Record<Column, string> = {
  stream: "Stream",
  state: "State",
  method: "Method",
  version: "Version",
  batches: "Batches",
  queue: "Waiting",
  gap: "Modality gap",
  uniformity: "Uniformity",
  entropy: "Entropy",
  shift: "Shift",
  seen: "Last seen",
};

const HINTS: Partial<Record<Column, string>> = {
  state: "The worst first",
  version: "How often its model has changed",
  batches: "Learned from, skipped and undone",
  queue: "Queries in the server's queue, and answered ones that are gathered for the next batch",
  gap: "How far queries lie from what is searched; adaptation moves it to its target (dashed)",
  uniformity: "How widely the queries are spread: near 0, they are almost the same",
  entropy: "How undecided the model is between the candidates, in nats",
  shift: "How far the queries are from clean ones, which are 1",
};

const NUMBERS = new Set<Column>(["version", "batches", "queue", "seen"]);

/** Streams, a row each; the head sorts. */
export function Table(props: {
  rows: Row[];
  now: number;
  columns: readonly Column[];
  sorting: Sorting;
  sortBy: (column: Column) => void;
}) {
  const { rows, now, columns, sorting } = props;
  return (
    <div class="scroll">
      <table class="streams-table">
        <caption class="unseen">Streams</caption>
        <thead>
          <tr>
            {columns.map((column) => (
              <th
                key={column}
                scope="col"
                class={NUMBERS.has(column) ? "number" : ""}
                aria-sort={sorting.column === column ? (sorting.down ? "descending" : "ascending") : undefined}
              >
                <button type="button" class="streams-sort" title={HINTS[column]} onClick={() => props.sortBy(column)}>
                  {TITLES[column]}
                  <span aria-hidden="true">{sorting.column === column ? (sorting.down ? "▼" : "▲") : ""}</span>
                </button>
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {rows.map((row) => (
            <TableRow
              key={row.card.name}
              row={row}
              seen={ago(row.card.last_seen, now)}
              withShift={columns.includes("shift")}
            />
          ))}
        </tbody>
      </table>
    </div>
  );
}

/** Made anew only when something in it has changed: there may be two hundred, and the time goes on. */
function TableRow({ row, seen, withShift }: { row: Row; seen: string; withShift: boolean }) {
  const { card, condition, track } = row;
  return useMemo(
    () => (
      <tr>
        <th scope="row" class="streams-name">
          <a href={link("streams", card.name)}>{card.name}</a>
          {card.pinned && <small title="Stays in memory, never expires"> pinned</small>}
          <small class="streams-track">{nameOfTrack(row)}</small>
        </th>
        <td>
          <StateBadge condition={condition} />
        </td>
        <td>{methodsOf(card).join(", ")}</td>
        <td class="number">{card.version}</td>
        <td class="number">
          <Batches card={card} />
        </td>
        <td class="number">
          <Queue card={card} />
        </td>
        {TRENDS.filter(({ name }) => name !== "shift" || withShift).map(({ name, label }) => (
          <td key={name}>
            <Trend row={row} name={name} label={label} />
          </td>
        ))}
        <td class="number streams-seen">{seen}</td>
      </tr>
    ),
    [card, condition.text, condition.why, track, seen, withShift],
  );
}
