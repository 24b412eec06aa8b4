import type { ComponentChildren } from "preact";
import { useState } from "preact/hooks";
import { Badge, Segments } from "../../components/fields.tsx";
import { Preview } from "../../components/preview.tsx";
import { Trouble } from "../../components/trouble.tsx";
import { figure } from "../../lib/format.ts";
import { statusOf } from "../../lib/learning.ts";
import { lost, moves, type Moved } from "../../lib/ranks.ts";
import { stream } from "../../lib/state.ts";
import type { Hit, RetrieveAnswer } from "../../lib/types.ts";
import { wordsOf } from "./hits.ts";
import { search } from "./search.ts";
import { rankOf } from "./send.ts";
import { adapted, shown, source, type Side } from "./state.ts";

/** The same query to both, next to each other; on a phone one at a time. */
export function Results() {
  const [facing, setFacing] = useState<"source" | "adapted">("adapted");
  const off = shown.value?.mode === "off";
  const before = source.value.answer?.results[0]?.hits ?? [];
  const after = adapted.value.answer?.results[0]?.hits ?? [];
  if (!shown.value && !source.value.busy)
    return <p class="empty card">Type what to look for, give a picture, or pick a sample.</p>;
  return (
    <section aria-label="Results">
      <p class="unseen" role="status">
        {source.value.busy || adapted.value.busy ? "" : heard(before, off ? null : after)}
      </p>
      {!off && (
        <div class="search-facing">
          <Segments
            label="Shown results"
            value={facing}
            change={setFacing}
            choices={[
              { value: "source", label: "Source" },
              { value: "adapted", label: "Adapted" },
            ]}
          />
        </div>
      )}
      <div class={`search-columns ${off ? "search-one" : `search-faces-${facing}`}`}>
        <Column name="source" side={source.value} title="Source model" note="never learns">
          <div class="search-facts">
            <p class="row">
              <Badge kind="off">frozen</Badge>
              <span>{source.value.answer && `source · ${arrows(source.value.answer.adaptation.direction)}`}</span>
            </p>
            <p class="hint">What the model finds without any adaptation.</p>
          </div>
          <Hits
            hits={moves(before, before)}
            ranked={false}
            onlyHere={off || !adapted.value.answer ? [] : lost(after, before)}
          />
        </Column>
        {!off && (
          <Column name="adapted" side={adapted.value} title="Adapted stream" note={stream.value}>
            <div class="search-facts">
              {adapted.value.answer && <Facts answer={adapted.value.answer} same={sameOrder(before, after)} />}
            </div>
            <Hits hits={moves(after, before)} ranked={source.value.answer !== null} onlyHere={[]} />
            <Lost hits={source.value.answer ? lost(after, before) : []} before={before} />
          </Column>
        )}
      </div>
    </section>
  );
}

function heard(before: Hit[], after: Hit[] | null): string {
  const right = shown.value?.truth;
  const place = (hits: Hit[]) => {
    const rank = right ? rankOf(right, hits) : null;
    return rank === null ? "not listed" : `rank ${rank}`;
  };
  const found = `${(after ?? before).length} hits.`;
  if (!right) return found;
  return `${found} The right item: source ${place(before)}${after ? `, adapted ${place(after)}` : ""}.`;
}

const sameOrder = (before: Hit[], after: Hit[]): boolean =>
  before.length === after.length && before.every((hit, place) => hit.id === after[place]?.id);

function Column(props: {
  name: "source" | "adapted";
  side: Side;
  title: string;
  note: string;
  children: ComponentChildren;
}) {
  const { side } = props;
  const total = side.answer?.timings_ms.total;
  return (
    <section class={`card search-column search-${props.name}`} aria-label={props.title} aria-busy={side.busy}>
      <header>
        <h2>
          <i class={`swatch c-${props.name}`} aria-hidden="true" />
          {props.title} <small>{props.note}</small>
        </h2>
        <small title={side.answer ? timings(side.answer) : ""}>
          {side.busy ? "searching …" : total === undefined ? "" : `${figure(total, 2)} ms`}
        </small>
      </header>
      {side.trouble ? <Trouble again={() => void search()}>{side.trouble}</Trouble> : props.children}
    </section>
  );
}

const timings = ({ timings_ms: all }: RetrieveAnswer): string =>
  (["wait", "encode", "search", "adapt"] as const).map((name) => `${name} ${figure(all[name])} ms`).join(", ");

const arrows = (direction: string): string => direction.replace("->", " → ");

function Facts(props: { answer: RetrieveAnswer; same: boolean }) {
  const { adaptation } = props.answer;
  const status = statusOf(adaptation, "query");
  const untouched = adaptation.state_version === 0;
  return (
    <>
      <p class="row">
        <Badge kind={status.kind}>{status.label}</Badge>
        <span>
          {adaptation.method} · version {adaptation.state_version ?? "–"} · {arrows(adaptation.direction)}
        </span>
      </p>
      <p class="hint">
        {untouched && props.same ? "Nothing learned yet, so it agrees with the source. " : ""}
        {status.text}
      </p>
    </>
  );
}

function Hits(props: { hits: Moved<Hit>[]; ranked: boolean; onlyHere: Hit[] }) {
  const place = shown.value;
  if (!place) return null;
  const alone = new Set(props.onlyHere.map((hit) => hit.id));
  const missing = place.truth !== null && !props.hits.some(({ hit }) => hit.id === place.truth);
  return (
    <div class="search-list">
      {props.hits.length === 0 && <p class="empty">The gallery has nothing to show here.</p>}
      <ol class="search-hits">
        {props.hits.map((moved) => (
          <Row
            key={moved.hit.id}
            moved={moved}
            words={wordsOf(place.gallery, moved.hit)}
            right={moved.hit.id === place.truth}
            ranked={props.ranked}
            alone={alone.has(moved.hit.id)}
          />
        ))}
      </ol>
      {missing && props.hits.length > 0 && (
        <p class="search-missing">
          The right item, {place.truth}, is not among the first {props.hits.length}.
        </p>
      )}
    </div>
  );
}

function Row(props: { moved: Moved<Hit>; words: string; right: boolean; ranked: boolean; alone: boolean }) {
  const { hit, rank } = props.moved;
  return (
    <li class={props.right ? "search-right" : ""}>
      <span class="search-rank" aria-label={`rank ${rank}`}>
        {rank}
      </span>
      <span aria-hidden="true">{hit.preview && <Preview path={hit.preview} text="" class="search-thumb" />}</span>
      <span class="search-words">
        <span>{props.words || hit.id}</span>
        <small>
          {props.words ? hit.id : ""}
          {props.right && <b class="search-tag">the right one</b>}
          {props.alone && <b class="search-only">only here</b>}
        </small>
      </span>
      <span class="search-score" title="cosine similarity">
        {hit.score.toFixed(3)}
        <i aria-hidden="true">
          <i style={{ width: `${Math.max(0, Math.min(1, hit.score)) * 100}%` }} />
        </i>
      </span>
      {props.ranked && <Mark moved={props.moved} />}
    </li>
  );
}

function Mark({ moved }: { moved: Moved<Hit> }) {
  const { gained, before } = moved;
  if (gained === null)
    return (
      <span class="search-mark search-new">
        new<span class="unseen">: the source model does not list it</span>
      </span>
    );
  if (gained === 0)
    return (
      <span class="search-mark">
        <span aria-hidden="true">=</span>
        <span class="unseen">same rank as before</span>
      </span>
    );
  const up = gained > 0;
  return (
    <span class={`search-mark ${up ? "search-up" : "search-down"}`} title={`rank ${before} with the source model`}>
      <span aria-hidden="true">
        {up ? "▲" : "▼"}
        {Math.abs(gained)}
      </span>
      <span class="unseen">
        {up ? "up" : "down"} {Math.abs(gained)}, from rank {before}
      </span>
    </span>
  );
}

function Lost(props: { hits: Hit[]; before: Hit[] }) {
  const name = shown.value?.gallery ?? "";
  if (props.hits.length === 0) return null;
  return (
    <details class="search-lost">
      <summary>{props.hits.length} that only the source listed</summary>
      <ul>
        {props.hits.map((hit) => (
          <li key={hit.id}>
            <b>{rankOf(hit.id, props.before)}</b> {wordsOf(name, hit) || hit.id}
          </li>
        ))}
      </ul>
    </details>
  );
}
