import { CorruptionFields } from "../../components/corruption-fields.tsx";
import { Plot } from "../../components/plot.tsx";
import { Course, PlanFields, RunCard, Tile } from "../../components/run.tsx";
import { figure, percent, words as spaced } from "../../lib/format.ts";
import type { Run } from "../../lib/runner.ts";
import { bothSides, SIDES, takenBack, type Side } from "../../lib/runs.ts";
import { models, tell } from "../../lib/state.ts";
import { entropies, movingAccuracy, verdict, type Entry } from "./course.ts";
import { methodChoices, QUICK } from "./methods.ts";
import { baseName, planned, runner, start, tryOne } from "./run.ts";
import { MEDIA, type Batch, type Plan } from "./send.ts";

const COUNTS = [64, 128, 256, 512];
const SIZES = [16, 32];
/** Samples that the moving accuracy looks back over. */
const WINDOW = 64;

/** Send a stream of corrupted clips and watch what adaptation makes of it. */
export function ClassifyRunCard() {
  const choices = methodChoices(models.value?.classifier ?? null);
  const choice = choices.find((one) => one.value === runner.method.value) ?? choices[0];
  return (
    <RunCard
      id="classify-run"
      runner={runner}
      hint="Demo clips, all corrupted alike. Their labels are known, so both models can be scored while the stream learns, without being told them."
      start={choice ? () => void start(choice) : null}
      fields={<Fields />}
    >
      {runner.run.value ? (
        <ClassifyCourse run={runner.run.value} />
      ) : (
        <p class="empty">Press Start: the accuracy of the source model and of the stream appear here.</p>
      )}
    </RunCard>
  );
}

function Fields() {
  return (
    <>
      {MEDIA.map((medium) => (
        <CorruptionFields
          key={medium}
          medium={medium}
          label={medium === "audio" ? "Of the sound" : "Of the picture"}
          value={planned.value[medium]}
          disabled={runner.going || runner.starting.value}
          change={(value) => (planned.value = { ...planned.value, [medium]: value })}
        />
      ))}
      <PlanFields
        runner={runner}
        counts={COUNTS}
        sizes={SIZES}
        base={baseName(planned.value)}
        methods={methodChoices(models.value?.classifier ?? null)}
      />
      {runner.method.value === QUICK && (
        <p class="hint">The fast rate is ten times the paper's, whose streams are longer than these.</p>
      )}
    </>
  );
}

function ClassifyCourse({ run }: { run: Run<Plan, Batch> }) {
  const { batches } = run;
  const entries = batches.flatMap((batch) => batch.entries);
  const said = verdict(entries);
  const again = async () => {
    await tryOne(run);
    document.getElementById("classify-sample")?.scrollIntoView({ block: "center" });
  };
  return (
    <Course
      run={run}
      sent={entries.length}
      things="clips"
      shift={shiftOf(run.plan)}
      measure="Accuracy"
      verdict={said?.sentence}
      again={{ label: "Ask about one of these", act: () => void tell(again) }}
      tiles={SIDES.map((side) => (
        <Tile key={side} side={side} label={side === "source" ? "Source" : "Adapted"} value={percent(said?.[side])} />
      ))}
    >
      <LastSent batch={batches.at(-1)} />
      <Plots batches={batches} entries={entries} />
    </Course>
  );
}

/** What was done to the clips; empty: nothing. */
function shiftOf({ corruption }: Plan): string {
  const parts = MEDIA.flatMap((medium) =>
    corruption[medium]
      ? [
          `${medium === "audio" ? "sound" : "picture"}: ${spaced(corruption[medium].name)}, severity ${corruption[medium].severity}`,
        ]
      : [],
  );
  return parts.join("; ");
}

const SHOWN = 8;

function LastSent({ batch }: { batch: Batch | undefined }) {
  if (!batch) return null;
  const mark = (entry: Entry, side: Side) => (entry[side]?.label === entry.truth ? "✓" : "✗");
  return (
    <div>
      <h3>Sent last</h3>
      <ul class="classify-sent">
        {batch.contents.slice(0, SHOWN).map(({ image }, place) => {
          const entry = batch.entries[place]!;
          return (
            <li key={batch.clips[place]!.id}>
              {image && <img src={image} alt="" />}
              <b>{entry.truth}</b>
              {SIDES.map((side) => (
                <small key={side} class={`c-${side}`} title={`${side} says: ${entry[side]?.label ?? "nothing"}`}>
                  <span aria-hidden="true">
                    {mark(entry, side)} {side}
                  </span>
                  <span class="unseen">
                    {side} says {entry[side]?.label ?? "nothing"}.
                  </span>
                </small>
              ))}
            </li>
          );
        })}
      </ul>
    </div>
  );
}

function Plots({ batches, entries }: { batches: readonly Batch[]; entries: readonly Entry[] }) {
  let sent = 0;
  const ends = batches.map((batch) => (sent += batch.entries.length));
  const common = { x: ends, marks: takenBack(batches, ends), xLabel: "clips sent", group: "classify-run", height: 180 };
  return (
    <div class="classify-plots">
      <Plot
        {...common}
        title={`Right, of the last ${WINDOW}`}
        lines={bothSides((side) => movingAccuracy(entries, side, ends, WINDOW))}
        format={(value) => percent(value, 0)}
      />
      <Plot
        {...common}
        title="Entropy"
        hint="How unsure the answers are, in nats: 0 is sure"
        lines={bothSides((side) => entropies(entries, side, ends))}
        format={(value) => figure(value, 2)}
      />
    </div>
  );
}
