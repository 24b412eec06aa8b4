import { useRef } from "preact/hooks";
import { Progress, Select } from "../../components/fields.tsx";
import { Plot } from "../../components/plot.tsx";
import { StreamField } from "../../components/stream-field.tsx";
import { figure, percent, words as spaced } from "../../lib/format.ts";
import { link } from "../../lib/router.ts";
import { config, models, tell } from "../../lib/state.ts";
import { Tile } from "./answer.tsx";
import { entropies, movingAccuracy, SIDES, verdict, type Entry, type Side } from "./course.ts";
import { methodChoices, QUICK } from "./methods.ts";
import { CorruptionFields } from "./parts.tsx";
import { MEDIA, type Batch, type Plan } from "./run.ts";
import {
  batchSize,
  method,
  nameOf,
  ownName,
  planned,
  run,
  samples,
  start,
  starting,
  startTrouble,
  stop,
  tryOne,
  type Run,
} from "./runner.ts";

const COUNTS = [64, 128, 256, 512];
const SIZES = [16, 32];
/** Samples that the moving accuracy looks back over. */
const WINDOW = 64;

/** Send a stream of corrupted clips and watch what adaptation makes of it. */
export function RunCard() {
  const going = run.value?.phase === "running";
  const focus = useRef<HTMLButtonElement>(null);
  const choices = methodChoices(models.value?.classifier ?? null);
  const choice = choices.find((one) => one.value === method.value) ?? choices[0];
  const ready = choice !== undefined && !going && !starting.value;
  return (
    <section class="card classify-run" aria-labelledby="classify-run">
      <div class="card-head">
        <div>
          <h2 id="classify-run">Send a stream</h2>
          <p class="hint">
            Demo clips, all corrupted alike. Their labels are known, so both models can be scored while the stream
            learns, without being told them.
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
          <button
            ref={focus}
            type="button"
            class="primary"
            aria-disabled={!ready}
            onClick={() => ready && void start(nameOf(), choice)}
          >
            {starting.value ? "Starting …" : going ? "Sending …" : "Start"}
          </button>
        </span>
      </div>
      <Choices disabled={going || starting.value} />
      {startTrouble.value && (
        <p role="alert" class="classify-trouble">
          {startTrouble.value}
        </p>
      )}
      {run.value ? (
        <Course run={run.value} />
      ) : (
        <p class="empty">Press Start: the accuracy of the source model and of the stream appear here.</p>
      )}
    </section>
  );
}

function Choices({ disabled }: { disabled: boolean }) {
  const most = Math.min(config.value?.limits.batch_size ?? 64, config.value?.limits.queries ?? 64);
  const sizes = SIZES.filter((size) => size <= most);
  return (
    <div class="classify-plan">
      {MEDIA.map((medium) => (
        <CorruptionFields
          key={medium}
          medium={medium}
          label={medium === "audio" ? "Of the sound" : "Of the picture"}
          value={planned.value[medium]}
          disabled={disabled}
          change={(value) => (planned.value = { ...planned.value, [medium]: value })}
        />
      ))}
      <Select
        label="How many"
        value={String(samples.value)}
        choices={COUNTS.map(String)}
        disabled={disabled}
        change={(value) => (samples.value = Number(value))}
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
        value={nameOf()}
        change={(name) => (ownName.value = name)}
        disabled={disabled}
      />
      <Select
        label="Stream's method"
        value={method.value}
        choices={methodChoices(models.value?.classifier ?? null)}
        disabled={disabled}
        change={(value) => (method.value = value)}
      />
      {method.value === QUICK && (
        <p class="hint classify-wide">The fast rate is ten times the paper's, whose streams are longer than these.</p>
      )}
    </div>
  );
}

function Course(props: { run: Run }) {
  const { phase, plan, batches, waiting, trouble } = props.run;
  const entries = batches.flatMap((batch) => batch.entries);
  const said = verdict(entries);
  return (
    <div class="classify-course">
      <Progress
        value={entries.length / plan.samples}
        label={waiting || `${entries.length} of ${plan.samples} clips sent to ${plan.stream}`}
      />
      <div class="classify-summary">
        <div class="classify-tiles" role="group" aria-label="Accuracy over the second half">
          <Tile side="source" label="Source" value={percent(said?.source)} />
          <Tile side="adapted" label="Adapted" value={percent(said?.adapted)} />
        </div>
        <div class="classify-verdict">
          <p role="status">{phase === "running" ? "" : ending(props.run, entries, said?.sentence)}</p>
          {phase === "failed" && (
            <p role="alert" class="classify-trouble">
              Stopped by an error: {trouble}
            </p>
          )}
          {phase === "running" && (
            <p class="muted">
              {shiftOf(plan)} · {props.run.method}
            </p>
          )}
          <p class="hint">{learned(batches)}</p>
        </div>
        {phase !== "running" && batches.length > 0 && (
          <p class="row">
            <button
              type="button"
              onClick={() =>
                void tell(async () => {
                  await tryOne(props.run);
                  document.getElementById("classify-sample")?.scrollIntoView({ block: "center" });
                })
              }
            >
              Ask about one of these
            </button>
            <a class="button" href={link("streams", plan.stream)}>
              Open the stream
            </a>
          </p>
        )}
      </div>
      <LastSent batch={batches.at(-1)} />
      <Plots batches={batches} entries={entries} />
    </div>
  );
}

function shiftOf({ corruption }: Plan): string {
  const parts = MEDIA.flatMap((medium) =>
    corruption[medium]
      ? [
          `${medium === "audio" ? "sound" : "picture"}: ${spaced(corruption[medium].name)}, severity ${corruption[medium].severity}`,
        ]
      : [],
  );
  return parts.join("; ") || "clean clips";
}

function ending({ phase, plan }: Run, entries: readonly Entry[], sentence: string | undefined): string {
  const done = phase === "done" ? "" : `Stopped after ${entries.length} of ${plan.samples} clips. `;
  const clean = MEDIA.every((medium) => plan.corruption[medium] === null) ? "These clips were clean. " : "";
  return `${done}${clean}${sentence ?? "Nothing was answered."}`;
}

function learned(batches: readonly Batch[]): string {
  const not = batches.filter(
    (batch) => batch.status === "skipped" || batch.status === "undone" || batch.status === "off",
  );
  if (batches.length === 0) return "";
  const why = not.at(-1)?.reason;
  return `Learned from ${batches.length - not.length} of ${batches.length} batches${why ? `; not from the last: ${why}` : ""}.`;
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
  const x = ends;
  const both = (of: (side: Side) => (number | null)[]) =>
    SIDES.map((side) => ({ label: side, values: of(side), colour: side }));
  const marks = batches.flatMap((batch, place) =>
    batch.status === "undone" ? [{ at: x[place]!, label: "taken back", colour: "bad" }] : [],
  );
  const common = { x, marks, xLabel: "clips sent", group: "classify-run", height: 180 };
  return (
    <div class="classify-plots">
      <Plot
        {...common}
        title={`Right, of the last ${WINDOW}`}
        lines={both((side) => movingAccuracy(entries, side, ends, WINDOW))}
        format={(value) => percent(value, 0)}
      />
      <Plot
        {...common}
        title="Entropy"
        hint="How unsure the answers are, in nats: 0 is sure"
        lines={both((side) => entropies(entries, side, ends))}
        format={(value) => figure(value, 2)}
      />
    </div>
  );
}
