import type { ComponentChildren } from "preact";
import { useRef, useState } from "preact/hooks";
import { Field, Segments, Select } from "../../components/fields.tsx";
import { count } from "../../lib/format.ts";
import { link } from "../../lib/router.ts";
import { connection, streams, totalStreams } from "../../lib/state.ts";
import type { StreamCard } from "../../lib/types.ts";
import { Cards } from "./cards.tsx";
import { conditionOf, latest, needsAttention } from "./condition.ts";
import { Events } from "./events.tsx";
import {
  COLUMNS,
  comparison,
  filtered,
  kept,
  startsDown,
  WORST_FIRST,
  type Column,
  type Row,
  type Sorting,
} from "./order.ts";
import { Locked, Stale } from "./parts.tsx";
import { Table, TITLES } from "./table.tsx";
import { clock, PHONE, useMedia } from "./use.ts";

function rowOf(card: StreamCard, now: number): Row {
  const condition = conditionOf(card, now);
  return { card, condition, track: card.tracks[condition.track] ?? null };
}

type Shown = "all" | "attention";

/** Rows in their order, which stays while they change; `stale`: sorted now, it would be another. */
function useOrder(rows: Row[], sorting: Sorting, name: string, shown: Shown) {
  const [sorts, setSorts] = useState(0);
  const order = useRef<{ key: string; names: string[] }>({ key: "", names: [] });
  const compare = comparison(sorting);
  const sorted = filtered(rows, name, shown === "attention").sort(compare);
  const key = JSON.stringify([sorting, name, shown, sorts]);
  const ordered = order.current.key === key ? kept(order.current.names, sorted, compare) : sorted;
  order.current = { key, names: ordered.map(({ card }) => card.name) };
  const stale = ordered.some((row, place) => row !== sorted[place]);
  return { ordered, stale, sortAgain: () => setSorts((before) => before + 1) };
}

export function StreamList() {
  const cards = streams.value;
  const now = clock.value;
  return (
    <Page>
      {cards.size > 0 ? (
        <>
          <Stale />
          <AllStreams rows={[...cards.values()].map((card) => rowOf(card, now))} now={now} />
          <Events cards={[...cards.values()]} now={now} />
        </>
      ) : (
        <NoStreams />
      )}
    </Page>
  );
}

function NoStreams() {
  if (connection.value === "locked") return <Locked />;
  return (
    <>
      <Stale />
      {connection.value === "live" && totalStreams.value === 0 ? (
        <Empty />
      ) : (
        connection.value !== "lost" && <p class="muted">Asking the server …</p>
      )}
    </>
  );
}

function AllStreams({ rows, now }: { rows: Row[]; now: number }) {
  const phone = useMedia(PHONE);
  const [sorting, setSorting] = useState<Sorting>(WORST_FIRST);
  const [name, setName] = useState("");
  const [shown, setShown] = useState<Shown>("all");
  const { ordered, stale, sortAgain } = useOrder(rows, sorting, name, shown);
  const troubled = rows.filter(({ condition }) => needsAttention(condition)).length;
  const sortBy = (column: Column) =>
    setSorting((before) =>
      before.column === column ? { column, down: !before.down } : { column, down: startsDown(column) },
    );
  const withShift = rows.some(({ track }) => latest(track?.recent?.shift) !== null);
  const columns = COLUMNS.filter((column) => column !== "shift" || withShift);
  return (
    <section class="card" aria-labelledby="streams-all">
      <div class="card-head">
        <div>
          <h2 id="streams-all">All streams</h2>
          <p class={`streams-summary ${troubled > 0 ? "c-bad" : "muted"}`} role="status">
            {summary(rows.length, troubled)}
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
          <button type="button" disabled={!stale} title="Rows keep their places while you read" onClick={sortAgain}>
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
      {totalStreams.value > rows.length && (
        <p class="hint streams-note">
          The {count(rows.length)} streams used last, of {count(totalStreams.value)}. Others open by their name:{" "}
          {link("streams", "NAME")}
        </p>
      )}
    </section>
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
