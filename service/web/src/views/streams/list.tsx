import type { ComponentChildren } from "preact";
import { useMemo, useRef, useState } from "preact/hooks";
import { Field, Segments, Select } from "../../components/fields.tsx";
import { Spark } from "../../components/spark.tsx";
import { ago, count, figure } from "../../lib/format.ts";
import { link } from "../../lib/router.ts";
import { connection, streams, totalStreams } from "../../lib/state.ts";
import type { StreamCard } from "../../lib/types.ts";
import { conditionOf, latest, needsAttention } from "./condition.ts";
import { Events } from "./events.tsx";
import {
  batchesOf,
  COLUMNS,
  comparison,
  filtered,
  gatheredOf,
  kept,
  methodsOf,
  startsDown,
  WORST_FIRST,
  type Column,
  type Row,
  type Sorting,
} from "./order.ts";
import { Locked, Stale, StateBadge, trackTitle } from "./parts.tsx";
import { clock, PHONE, useMedia } from "./use.ts";

const TITLES: Record<Column, string> = {
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

function rowOf(card: StreamCard, now: number): Row {
  const condition = conditionOf(card, now);
  return { card, condition, track: card.tracks[condition.track] ?? null };
}

export function StreamList() {
  const cards = streams.value;
  const now = clock.value;
  const phone = useMedia(PHONE);
  const [sorting, setSorting] = useState<Sorting>(WORST_FIRST);
  const [name, setName] = useState("");
  const [shown, setShown] = useState<"all" | "attention">("all");
  const [sorts, setSorts] = useState(0);
  const order = useRef<{ key: string; names: string[] }>({ key: "", names: [] });

  const rows = [...cards.values()].map((card) => rowOf(card, now));
  const compare = comparison(sorting);
  const sorted = filtered(rows, name, shown === "attention").sort(compare);
  const key = JSON.stringify([sorting, name, shown, sorts]);
  const ordered = order.current.key === key ? kept(order.current.names, sorted, compare) : sorted;
  order.current = { key, names: ordered.map(({ card }) => card.name) };
  const stale = ordered.some((row, place) => row !== sorted[place]);
  const troubled = rows.filter(({ condition }) => needsAttention(condition)).length;

  if (connection.value === "locked" && cards.size === 0)
    return (
      <Page>
        <Locked />
      </Page>
    );
  if (cards.size === 0)
    return (
      <Page>
        <Stale />
        {connection.value === "live" && totalStreams.value === 0 ? (
          <Empty />
        ) : (
          connection.value !== "lost" && <p class="muted">Asking the server …</p>
        )}
      </Page>
    );
  const sortBy = (column: Column) =>
    setSorting((before) =>
      before.column === column ? { column, down: !before.down } : { column, down: startsDown(column) },
    );
  const withShift = rows.some(({ track }) => latest(track?.recent?.shift) !== null);
  const columns = COLUMNS.filter((column) => column !== "shift" || withShift);
  return (
    <Page>
      <Stale />
      <section class="card" aria-labelledby="streams-all">
        <div class="card-head">
          <div>
            <h2 id="streams-all">All streams</h2>
            <p class={`streams-summary ${troubled > 0 ? "c-bad" : "muted"}`} role="status">
              {summary(cards.size, troubled)}
            </p>
          </div>
          <div class="row end">
            {phone && <SortSelect sorting={sorting} columns={columns} change={setSorting} />}
            <Field label="Find by name" class="streams-find">
              <input
                type="search"
                value={name}
                placeholder="camera"
                onInput={(event) => setName(event.currentTarget.value)}
              />
            </Field>
            <Segments
              label="Which"
              value={shown}
              choices={[
                { value: "all", label: "All" },
                { value: "attention", label: `Need attention (${troubled})` },
              ]}
              change={setShown}
            />
            <button
              type="button"
              disabled={!stale}
              title="Rows keep their places while you read"
              onClick={() => setSorts((before) => before + 1)}
            >
              Sort again
            </button>
          </div>
        </div>
        {ordered.length === 0 ? (
          <Nothing name={name} />
        ) : phone ? (
          <Cards rows={ordered} now={now} />
        ) : (
          <Table rows={ordered} now={now} columns={columns} sorting={sorting} sortBy={sortBy} />
        )}
        {totalStreams.value > cards.size && (
          <p class="hint streams-note">
            The {count(cards.size)} streams used last, of {count(totalStreams.value)}. Others open by their name:{" "}
            {link("streams", "NAME")}
          </p>
        )}
      </section>
      <Events cards={[...cards.values()]} now={now} />
    </Page>
  );
}

function summary(all: number, troubled: number): string {
  if (troubled === 0) return all === 1 ? "The stream is well." : `All ${count(all)} are well.`;
  return `${count(troubled)} of ${count(all)} need${troubled === 1 ? "s" : ""} attention.`;
}

const Page = (props: { children: ComponentChildren }) => (
  <div class="stack">
    <header>
      <h1>Streams</h1>
      <p class="muted">Queries from one source — a camera, a shop, a tenant — form a stream. Each adapts on its own.</p>
    </header>
    {props.children}
  </div>
);

const Empty = () => (
  <section class="card empty">
    <h2>No streams yet</h2>
    <p>
      A stream begins with its first query: name it in <code>"stream"</code>, and it appears here as it learns.
    </p>
    <p>
      <a class="button" href={link("search")}>
        Make one in Search
      </a>
    </p>
  </section>
);

function Nothing({ name }: { name: string }) {
  const wanted = name.trim();
  return (
    <div class="empty">
      <p>{wanted ? `No stream here has “${wanted}” in its name.` : "No stream needs attention."}</p>
      {totalStreams.value > streams.value.size && /^[\w.-]+$/.test(wanted) && (
        <a class="button" href={link("streams", wanted)}>
          Open “{wanted}”
        </a>
      )}
    </div>
  );
}

function SortSelect(props: { sorting: Sorting; columns: readonly Column[]; change: (sorting: Sorting) => void }) {
  const choices = props.columns.map((value) => ({ value, label: value === "state" ? "Worst first" : TITLES[value] }));
  return (
    <Select
      label="Sort by"
      value={props.sorting.column}
      choices={choices}
      change={(column) => props.change({ column, down: startsDown(column) })}
    />
  );
}

const NUMBERS = new Set<Column>(["version", "batches", "queue", "seen"]);

function Table(props: {
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
          <small class="streams-track">{trackOf(row)}</small>
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
        <Drift row={row} name="modality_gap" label="Modality gap" />
        <Drift row={row} name="uniformity" label="Uniformity" />
        <Drift row={row} name="entropy_nats" label="Entropy" />
        {withShift && (
          <td>
            <Trend row={row} name="shift" label="Shift" />
          </td>
        )}
        <td class="number streams-seen">{seen}</td>
      </tr>
    ),
    [card, condition.text, condition.why, track, seen, withShift],
  );
}

const Drift = (props: { row: Row; name: "modality_gap" | "uniformity" | "entropy_nats"; label: string }) => (
  <td>
    <Trend {...props} />
  </td>
);

function Trend({
  row,
  name,
  label,
}: {
  row: Row;
  name: "modality_gap" | "uniformity" | "entropy_nats" | "shift";
  label: string;
}) {
  const recent = row.track?.recent;
  const values = recent?.[name] ?? [];
  const target = name === "modality_gap" ? latest(recent?.modality_gap_target) : null;
  return (
    <span class="streams-trend">
      {values.filter((value) => value !== null).length > 1 && (
        <Spark
          values={values}
          {...(target !== null && recent?.modality_gap_target ? { target: recent.modality_gap_target } : {})}
          label={label}
          width={72}
          height={24}
        />
      )}
      <span class="streams-figure">
        {figure(latest(values))}
        {target !== null && (
          <small class="c-target" title="Target">
            → {figure(target)}
          </small>
        )}
      </span>
    </span>
  );
}

function Batches({ card }: { card: StreamCard }) {
  const { applied, skipped, undone } = batchesOf(card);
  return (
    <span title={`${applied} learned from, ${skipped} skipped, ${undone} undone`}>
      {count(applied)}
      {(skipped > 0 || undone > 0) && (
        <small class="streams-under">
          {skipped > 0 && <span class="c-warn">{count(skipped)} skipped</span>}
          {undone > 0 && <span class="c-bad">{count(undone)} undone</span>}
        </small>
      )}
    </span>
  );
}

function Queue({ card }: { card: StreamCard }) {
  const gathered = gatheredOf(card);
  return (
    <span title={`${card.waiting ?? "an unknown number of"} queries in the queue, ${gathered} gathered`}>
      {card.waiting ?? "–"}
      {gathered > 0 && <small class="streams-under">{count(gathered)} gathered</small>}
    </span>
  );
}

const trackOf = ({ card, track }: Row): string =>
  !track ? "no queries yet" : trackTitle(track) + (card.tracks.length > 1 ? ` +${card.tracks.length - 1}` : "");

function Cards({ rows, now }: { rows: Row[]; now: number }) {
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
        <p class="hint">{[trackOf(row), methodsOf(card).join(", "), seen].filter(Boolean).join(" · ")}</p>
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
            <div>
              <dt>Modality gap</dt>
              <dd>
                <Trend row={row} name="modality_gap" label="Modality gap" />
              </dd>
            </div>
            <div>
              <dt>Uniformity</dt>
              <dd>
                <Trend row={row} name="uniformity" label="Uniformity" />
              </dd>
            </div>
            <div>
              <dt>Entropy</dt>
              <dd>
                <Trend row={row} name="entropy_nats" label="Entropy" />
              </dd>
            </div>
            <div>
              <dt>Shift</dt>
              <dd>
                <Trend row={row} name="shift" label="Shift" />
              </dd>
            </div>
          </dl>
        )}
      </li>
    ),
    [card, condition.text, condition.why, track, seen],
  );
}
