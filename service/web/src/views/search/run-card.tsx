import type { ComponentProps } from "preact";
import { useState } from "preact/hooks";
import { CorruptionFields } from "../../components/corruption-fields.tsx";
import { Segments, Select } from "../../components/fields.tsx";
import { Plot } from "../../components/plot.tsx";
import { Course, PlanFields, RunCard, Tile } from "../../components/run.tsx";
import { get, part } from "../../lib/api.ts";
import { figure, percent, words } from "../../lib/format.ts";
import type { Run } from "../../lib/runner.ts";
import { bothSides, takenBack } from "../../lib/runs.ts";
import { galleries, gallery, models, stream, tell } from "../../lib/state.ts";
import type { Item, Modality } from "../../lib/types.ts";
import { movingRecall, verdict, type Figures } from "./course.ts";
import { methodChoices, QUICK } from "./methods.ts";
import { baseName, figures, kind, planned, runner, start } from "./run.ts";
import { useSample } from "./samples.ts";
import type { Batch, Plan } from "./send.ts";
import { corruption, mode, target } from "./state.ts";

const COUNTS = [128, 256, 512, 1024, 2048];
const SIZES = [16, 32, 64];
/** Queries that the moving recall looks back over. */
const WINDOW = 128;

/** Send a stream of corrupted queries and watch what adaptation makes of it. */
export function SearchRunCard() {
  const choices = methodChoices(models.value);
  const choice = choices.find((one) => one.value === runner.method.value) ?? choices[0];
  return (
    <RunCard
      id={RUN_CARD}
      runner={runner}
      hint="Items of the gallery become queries, corrupted. As the right answers are known, both sides can be scored while the stream learns, without being told them."
      start={choice && gallery.value ? () => void start(choice) : null}
      fields={<Fields />}
    >
      {runner.run.value ? (
        <SearchCourse run={runner.run.value} />
      ) : (
        <p class="empty">
          Press Start: recall of the source model and of the stream appear here, with what the stream looks at instead
          of the right answers.
        </p>
      )}
    </RunCard>
  );
}

/** The card's id. */
export const RUN_CARD = "search-run";

function Fields() {
  const card = galleries.value.find((one) => one.name === gallery.value);
  const twoSided = Boolean(card?.targets.image && card.targets.text);
  const disabled = runner.going || runner.starting.value;
  return (
    <>
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
        medium={kind.value}
        label="Corruption"
        value={planned.value[kind.value]}
        disabled={disabled}
        change={(value) => (planned.value = { ...planned.value, [kind.value]: value })}
      />
      <PlanFields
        runner={runner}
        counts={COUNTS}
        sizes={SIZES}
        base={baseName()}
        methods={methodChoices(models.value)}
      />
      {runner.method.value === QUICK && (
        <p class="hint">
          The fast rate is ours, for short demonstrations: three times that of preset attune, ten times the paper's. In
          service take <code>attune</code> or <code>tcr_untrain</code>.
        </p>
      )}
      {card && !twoSided && (
        <p class="hint">For this, items need both a picture and a text; gallery {card.name} has no such pairs.</p>
      )}
    </>
  );
}

function SearchCourse({ run }: { run: Run<Plan, Batch> }) {
  const [at, setAt] = useState<"1" | "5">("1");
  const { plan, batches } = run;
  const k = Number(at);
  const said = verdict(batches, k);
  return (
    <Course
      run={run}
      sent={batches.reduce((sum, batch) => sum + batch.ids.length, 0)}
      things="queries"
      shift={plan.corruption ? `${words(plan.corruption.name)}, severity ${plan.corruption.severity}` : ""}
      measure={`Recall at ${k}`}
      verdict={said?.sentence}
      again={{ label: "Compare one of these queries", act: () => void tell(() => compareOne(run)) }}
      tiles={
        <>
          <Tile side="source" label="Source" value={percent(said?.source)} />
          <Tile side="adapted" label="Adapted" value={percent(said?.adapted)} />
          <Segments
            label="Recall at"
            value={at}
            change={setAt}
            choices={[
              { value: "1", label: "recall@1" },
              { value: "5", label: "recall@5" },
            ]}
          />
        </>
      }
    >
      {batches.length > 0 && <Plots batches={batches} k={k} />}
    </Course>
  );
}

/** Search with what the stream has learned, starting with a query that it got right and the source did not. */
async function compareOne({ plan, batches }: Run<Plan, Batch>): Promise<void> {
  const item = await get<Item>(`/galleries/${part(plan.gallery)}/items/${part(helped(batches))}`);
  stream.value = plan.stream;
  target.value = plan.kind === "image" ? "text" : "image";
  mode.value = "async";
  corruption.value = { ...corruption.value, [plan.kind]: plan.corruption };
  await useSample(item, plan.kind === "image" ? "picture" : "words");
  document.getElementById("search-query")?.scrollIntoView({ behavior: "smooth", block: "center" });
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

function Plots({ batches, k }: { batches: readonly Batch[]; k: number }) {
  let sent = 0;
  const x = batches.map((batch) => (sent += batch.ids.length));
  const column = (name: keyof Figures) => batches.map((_, place) => figures.value.get(place)?.[name] ?? null);
  const moving = (side: "source" | "adapted") =>
    movingRecall(
      batches.map((batch) => batch[side]),
      k,
      WINDOW,
    );
  const common = { x, xLabel: "queries sent", group: RUN_CARD, marks: takenBack(batches, x) };
  return (
    <div class="search-plots">
      <div class="search-main-plot">
        <Plot
          {...common}
          title={`Recall@${k}, last ${WINDOW} queries`}
          height={220}
          format={(value) => percent(value, 0)}
          lines={bothSides(moving)}
        />
        <LastSent batch={batches.at(-1)!} k={k} />
      </div>
      <div class="search-small-plots">
        <SmallPlot
          {...common}
          title="Modality gap"
          lines={[
            { label: "batch", values: column("modality_gap"), colour: "adapted" },
            { label: "target", values: column("modality_gap_target"), colour: "target", dashed: true },
          ]}
          why="Distance between the middle of the queries and the middle of what they find. Adaptation pulls it to the dashed line, that of source-like queries."
          note="How far queries lie from what they find."
        />
        <SmallPlot
          {...common}
          title="Uniformity"
          lines={[{ label: "batch", values: column("uniformity"), colour: "adapted" }]}
          why="How widely the queries of a batch spread; corrupted ones crowd together."
          note="How widely queries spread; corrupted ones crowd."
        />
        <SmallPlot
          {...common}
          title="Entropy"
          format={(value) => figure(value, 2)}
          lines={[{ label: "batch", values: column("entropy_nats"), colour: "adapted" }]}
          why="How unsure the answers are, in nats: 0 is sure."
          note="How unsure the answers are; 0 is sure."
        />
      </div>
    </div>
  );
}

function SmallPlot({ why, note, ...plot }: ComponentProps<typeof Plot> & { why: string; note: string }) {
  return (
    <div title={why}>
      <Plot {...plot} height={150} />
      <p class="hint">{note}</p>
    </div>
  );
}
