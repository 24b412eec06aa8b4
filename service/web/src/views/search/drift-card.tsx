import type { RefObject } from "preact";
import { useRef, useState } from "preact/hooks";
import { Progress, Segments, Select } from "../../components/fields.tsx";
import { Plot } from "../../components/plot.tsx";
import { StreamField } from "../../components/stream-field.tsx";
import { get, part } from "../../lib/api.ts";
import { figure, percent, words as spaced } from "../../lib/format.ts";
import { link } from "../../lib/router.ts";
import { config, galleries, gallery, models, stream, streams, tell } from "../../lib/state.ts";
import type { Item, Modality } from "../../lib/types.ts";
import { CorruptionFields } from "./corrupt.tsx";
import { movingRecall, verdict, type Batch, type Figures } from "./drift.ts";
import { methodChoices, QUICK } from "./methods.ts";
import {
  batchSize,
  kind,
  method,
  nameOf,
  ownName,
  planned,
  queries,
  run,
  start,
  starting,
  startTrouble,
  stop,
  type Run,
} from "./run.ts";
import { corruption, mode, target, useSample } from "./state.ts";

const COUNTS = [128, 256, 512, 1024, 2048];
const SIZES = [16, 32, 64];
/** Queries that the moving recall looks back over. */
const WINDOW = 128;

/** Send a stream of corrupted queries and watch what adaptation makes of it. */
export function DriftCard() {
  const going = run.value?.phase === "running";
  const focus = useRef<HTMLButtonElement>(null);
  return (
    <section class="card search-drift" id="search-drift" aria-labelledby="search-drift-title">
      <div class="card-head">
        <div>
          <h2 id="search-drift-title" tabIndex={-1}>
            Send a stream
          </h2>
          <p class="hint">
            Items of the gallery become queries, corrupted. As the right answers are known, both sides can be scored
            while the stream learns, without being told them.
          </p>
        </div>
        <span class="row">
          {going && (
            <button
              type="button"
              onClick={() => {
                stop();
                focus.current?.focus();
              }}
            >
              Stop
            </button>
          )}
          <StartButton button={focus} />
        </span>
      </div>
      <Choices disabled={going || starting.value} />
      {startTrouble.value && (
        <p role="alert" class="search-trouble">
          {startTrouble.value}
        </p>
      )}
      {run.value ? <Course run={run.value} /> : <Nothing />}
    </section>
  );
}

function StartButton(props: { button: RefObject<HTMLButtonElement | null> }) {
  const going = run.value?.phase === "running";
  const choice =
    methodChoices(models.value).find((one) => one.value === method.value) ?? methodChoices(models.value)[0];
  const ready = choice && gallery.value && !going && !starting.value;
  return (
    <button
      ref={props.button}
      type="button"
      class="primary"
      aria-disabled={!ready}
      onClick={() => ready && void start(nameOf(streams.value.keys()), choice)}
    >
      {starting.value ? "Starting …" : going ? "Sending …" : "Start"}
    </button>
  );
}

function Choices({ disabled }: { disabled: boolean }) {
  const card = galleries.value.find((one) => one.name === gallery.value);
  const choices = methodChoices(models.value);
  const most = Math.min(config.value?.limits.batch_size ?? 64, config.value?.limits.queries ?? 64);
  const sizes = SIZES.filter((size) => size <= most);
  const twoSided = Boolean(card?.targets.image && card.targets.text);
  return (
    <div class="search-plan">
      <Select
        label="Queries are"
        value={kind.value}
        disabled={disabled}
        change={(value: Modality) => (kind.value = value)}
        choices={[
          { value: "image", label: "pictures, to find texts" },
          { value: "text", label: "texts, to find pictures" },
        ]}
      />
      <CorruptionFields
        kind={kind.value}
        label="Corruption"
        value={planned.value[kind.value]}
        disabled={disabled}
        change={(value) => (planned.value = { ...planned.value, [kind.value]: value })}
      />
      <Select
        label="How many"
        value={String(queries.value)}
        choices={COUNTS.map(String)}
        disabled={disabled}
        change={(value) => (queries.value = Number(value))}
      />
      <Select
        label="A batch"
        value={String(batchSize.value)}
        choices={(sizes.length ? sizes : [most]).map(String)}
        disabled={disabled}
        change={(value) => (batchSize.value = Number(value))}
      />
      <StreamField
        label="Stream's name"
        value={run.value?.phase === "running" ? run.value.plan.stream : nameOf(streams.value.keys())}
        change={(name) => (ownName.value = name)}
        disabled={disabled}
      />
      <Select
        label="Stream's method"
        value={method.value}
        choices={choices}
        disabled={disabled}
        change={(value) => (method.value = value)}
      />
      {method.value === QUICK && (
        <p class="hint search-wide">
          The fast rate is ours, for short demonstrations: three times that of preset attune, ten times the paper's. In
          service take <code>attune</code> or <code>tcr_untrain</code>.
        </p>
      )}
      {card && !twoSided && (
        <p class="hint search-wide">
          For this, items need both a picture and a text; gallery {card.name} has no such pairs.
        </p>
      )}
    </div>
  );
}

function Nothing() {
  return (
    <p class="empty">
      Press Start: recall of the source model and of the stream appear here, with what the stream looks at instead of
      the right answers.
    </p>
  );
}

function Course(props: { run: Run }) {
  const [at, setAt] = useState<"1" | "5">("1");
  const { phase, plan, total, batches, waiting, trouble } = props.run;
  const k = Number(at);
  const sent = batches.reduce((sum, batch) => sum + batch.ids.length, 0);
  const said = verdict(batches, k);
  return (
    <div class="search-course">
      <Progress value={sent / total} label={waiting || `${sent} of ${total} queries sent to ${plan.stream}`} />
      <div class="search-summary">
        <div class="search-figures" role="group" aria-label={`Recall at ${k} over the second half`}>
          <Tile colour="source" label="Source" value={percent(said?.source)} />
          <Tile colour="adapted" label="Adapted" value={percent(said?.adapted)} />
          <Segments
            label="Recall at"
            value={at}
            change={setAt}
            choices={[
              { value: "1", label: "recall@1" },
              { value: "5", label: "recall@5" },
            ]}
          />
        </div>
        <div class="search-verdict">
          <p role="status">{phase === "running" ? "" : ending(props.run, said?.sentence)}</p>
          {phase === "failed" && (
            <p role="alert" class="search-trouble">
              Stopped by an error: {trouble}
            </p>
          )}
          {phase === "running" && (
            <p class="muted">
              {spaced(plan.corruption?.name ?? "clean")}
              {plan.corruption ? `, severity ${plan.corruption.severity}` : ""} · {props.run.method}
            </p>
          )}
          <p class="hint">{learned(batches)}</p>
          {phase !== "running" && batches.length > 0 && <Afterwards run={props.run} />}
        </div>
      </div>
      {batches.length > 0 && <Plots run={props.run} k={k} />}
    </div>
  );
}

function ending({ phase, batches, total, plan }: Run, sentence: string | undefined): string {
  const sent = batches.reduce((sum, batch) => sum + batch.ids.length, 0);
  const done = phase === "done" ? "" : `Stopped after ${sent} of ${total} queries. `;
  const what = plan.corruption ? "" : "These queries were clean. ";
  return `${done}${what}${sentence ?? "Nothing was answered."}`;
}

function learned(batches: readonly Batch[]): string {
  const not = batches.filter((batch) => batch.status === "skipped" || batch.status === "undone");
  if (batches.length === 0) return "";
  const why = not.at(-1)?.reason;
  return `Learned from ${batches.length - not.length} of ${batches.length} batches${why ? `; last skipped: ${why}` : ""}.`;
}

function Tile(props: { colour: string; label: string; value: string }) {
  return (
    <div class="search-tile">
      <span>
        <i class={`swatch c-${props.colour}`} aria-hidden="true" />
        {props.label}
      </span>
      <b class={`c-${props.colour}`}>{props.value}</b>
    </div>
  );
}

/** Search with what the stream has learned, starting with a query that it got right and the source did not. */
function Afterwards(props: { run: Run }) {
  const { plan, batches } = props.run;
  const compare = () =>
    tell(async () => {
      const item = await get<Item>(`/galleries/${part(plan.gallery)}/items/${part(helped(batches))}`);
      stream.value = plan.stream;
      target.value = plan.kind === "image" ? "text" : "image";
      mode.value = "async";
      corruption.value = { ...corruption.value, [plan.kind]: plan.corruption };
      await useSample(item, plan.kind === "image" ? "picture" : "words");
      document.getElementById("search-query")?.scrollIntoView({ behavior: "smooth", block: "center" });
    });
  return (
    <p class="row">
      <button type="button" onClick={() => void compare()}>
        Compare one of these queries
      </button>
      <a class="button" href={link("streams", plan.stream)}>
        Open the stream
      </a>
    </p>
  );
}

function helped(batches: readonly Batch[]): string {
  for (const batch of batches.toReversed()) {
    const place = batch.adapted.findIndex((rank, query) => rank === 1 && batch.source[query] !== 1);
    if (place >= 0) return batch.ids[place]!;
  }
  return batches.at(-1)!.ids[0]!;
}

const SHOWN = 8;

function LastSent(props: { batch: Batch; k: number }) {
  const { batch, k } = props;
  const mark = (rank: number | null) => (rank !== null && rank <= k ? "✓" : "✗");
  return (
    <div>
      <h3>
        Sent last <small>is the right item {k === 1 ? "first" : `among the first ${k}`}?</small>
      </h3>
      <ul class="search-sent">
        {batch.queries.slice(0, SHOWN).map((query, place) => (
          <li key={batch.ids[place]}>
            {query.image ? (
              <img src={query.image} alt={`Corrupted picture of ${batch.ids[place]}`} />
            ) : (
              <span class="preview words">{query.text}</span>
            )}
            <small>
              <span class="c-source" aria-label={`source: rank ${batch.source[place] ?? "over 10"}`}>
                {mark(batch.source[place]!)} source
              </span>
              <span class="c-adapted" aria-label={`adapted: rank ${batch.adapted[place] ?? "over 10"}`}>
                {mark(batch.adapted[place]!)} adapted
              </span>
            </small>
          </li>
        ))}
      </ul>
    </div>
  );
}

const GROUP = "search-drift";

function Plots(props: { run: Run; k: number }) {
  const { batches, figures } = props.run;
  let sent = 0;
  const x = batches.map((batch) => (sent += batch.ids.length));
  const column = (name: keyof Figures) => batches.map((_, place) => figures.get(place)?.[name] ?? null);
  const moving = (side: "source" | "adapted") =>
    movingRecall(
      batches.map((batch) => batch[side]),
      props.k,
      WINDOW,
    );
  const marks = batches.flatMap((batch, place) =>
    batch.status === "undone" ? [{ at: x[place]!, label: "taken back", colour: "bad" }] : [],
  );
  const common = { x, xLabel: "queries sent", group: GROUP, marks };
  return (
    <div class="search-plots">
      <div class="search-main-plot">
        <Plot
          {...common}
          title={`Recall@${props.k}, last ${WINDOW} queries`}
          height={220}
          format={(value) => percent(value, 0)}
          lines={[
            { label: "source", values: moving("source"), colour: "source" },
            { label: "adapted", values: moving("adapted"), colour: "adapted" },
          ]}
        />
        <LastSent batch={batches.at(-1)!} k={props.k} />
      </div>
      <div class="search-small-plots">
        <div title="Distance between the middle of the queries and the middle of what they find. Adaptation pulls it to the dashed line, that of source-like queries.">
          <Plot
            {...common}
            title="Modality gap"
            height={150}
            lines={[
              { label: "batch", values: column("modality_gap"), colour: "adapted" },
              { label: "target", values: column("modality_gap_target"), colour: "target", dashed: true },
            ]}
          />
          <p class="hint">How far queries lie from what they find.</p>
        </div>
        <div title="How widely the queries of a batch spread; corrupted ones crowd together.">
          <Plot
            {...common}
            title="Uniformity"
            height={150}
            lines={[{ label: "batch", values: column("uniformity"), colour: "adapted" }]}
          />
          <p class="hint">How widely queries spread; corrupted ones crowd.</p>
        </div>
        <div title="How unsure the answers are, in nats: 0 is sure.">
          <Plot
            {...common}
            title="Entropy"
            height={150}
            format={(value) => figure(value, 2)}
            lines={[{ label: "batch", values: column("entropy_nats"), colour: "adapted" }]}
          />
          <p class="hint">How unsure the answers are; 0 is sure.</p>
        </div>
      </div>
    </div>
  );
}
