import { useState } from "preact/hooks";
import { Badge, Field, Segments, Select } from "../../components/fields.tsx";
import { Plot } from "../../components/plot.tsx";
import { StreamField } from "../../components/stream-field.tsx";
import { figure, percent } from "../../lib/format.ts";
import { models, say, stream, streams, tell } from "../../lib/state.ts";
import type { ClassifyAnswer, Mode } from "../../lib/types.ts";
import { entropies, movingAccuracy, score, share, SIDES, type Side } from "./course.ts";
import { rowsOf, type Row } from "./labels.ts";
import { chosenMethod, configure, methodChoices, OWN } from "./methods.ts";
import {
  askSoon,
  asTexts,
  going,
  hasClassifier,
  labelsWrong,
  mode,
  ownLabels,
  sequence,
  shown,
  sides,
  template,
  top,
  trouble,
  useOwnLabels,
  zeroShot,
  type Answered,
} from "./state.ts";
import { completion, lacked, novelty, statusOf } from "./words.ts";

/** What both models say. */
export function AnswerCard() {
  return (
    <section class="card classify-answer" aria-labelledby="classify-answer">
      <div class="card-head">
        <h2 id="classify-answer">Answer</h2>
        {hasClassifier.value && (
          <Segments
            label="Labels"
            value={zeroShot.value ? "own" : "model"}
            choices={[
              { value: "model", label: "The model's labels" },
              { value: "own", label: "My labels" },
            ]}
            change={(value) => useOwnLabels(value === "own")}
          />
        )}
      </div>
      {asTexts.value && <OwnLabels />}
      <Options />
      {trouble.value ? (
        <p role="alert" class="classify-trouble">
          {trouble.value}
        </p>
      ) : (
        <Result />
      )}
      <Sequence />
    </section>
  );
}

function OwnLabels() {
  return (
    <div class="classify-own">
      <p class="hint">
        {hasClassifier.value
          ? ""
          : "This server has no classifier of sound and pictures (a start with --classifier brings one). "}
        Write what pictures may show: the encoder of the search picks the closest. Sound takes no part.
      </p>
      <Field label="Labels, with commas or on lines">
        <textarea
          rows={2}
          value={ownLabels.value}
          aria-invalid={labelsWrong.value !== ""}
          aria-describedby="classify-labels-wrong"
          onInput={(event) => {
            ownLabels.value = event.currentTarget.value;
            void askSoon();
          }}
        />
      </Field>
      <Field label="In a sentence">
        <input
          type="text"
          value={template.value}
          onInput={(event) => {
            template.value = event.currentTarget.value;
            void askSoon();
          }}
        />
      </Field>
      <p id="classify-labels-wrong" class="classify-wrong">
        {labelsWrong.value}
      </p>
    </div>
  );
}

const MODES: { value: Mode; label: string }[] = [
  { value: "auto", label: "auto" },
  { value: "sync", label: "sync: learn, then answer" },
  { value: "async", label: "async: answer, then learn" },
  { value: "off", label: "off: source model only" },
];

function Options() {
  return (
    <div class="classify-options">
      <StreamField
        label="Stream"
        value={stream.value}
        change={(name) => {
          stream.value = name;
          void askSoon();
        }}
      />
      {!asTexts.value && <MethodSelect />}
      <Select
        label="Learning"
        value={mode.value}
        choices={MODES}
        change={(value) => {
          mode.value = value;
          void askSoon();
        }}
      />
      <Select
        label="Labels shown"
        value={String(top.value)}
        choices={["5", "8", "10"]}
        change={(value) => (top.value = Number(value))}
      />
    </div>
  );
}

function MethodSelect() {
  const [busy, setBusy] = useState(false);
  const classifier = models.value?.classifier ?? null;
  const choices = methodChoices(classifier);
  const card = streams.value.get(stream.value);
  const usual = classifier?.default_method ?? "";
  const chosen = chosenMethod(card, choices, usual);
  const all = chosen === OWN ? [...choices, { value: OWN, label: `${card!.classify!.method}, own settings` }] : choices;
  const change = async (value: string) => {
    const choice = choices.find((one) => one.value === value);
    if (!choice) return;
    setBusy(true);
    await tell(async () => {
      if (await configure(stream.value, choice, usual))
        say(`Stream ${stream.value} classifies with ${choice.label} now`);
    });
    setBusy(false);
  };
  return (
    <Select
      key={`${chosen}/${busy}`}
      label="Method"
      value={chosen}
      choices={all}
      disabled={busy}
      change={(value) => void change(value)}
    />
  );
}

// Labels -----------------------------------------------------------------------------------------------------------

const labelsOf = (side: Answered) => side.answer?.results[0]?.labels ?? null;

function Result() {
  const about = shown.value;
  const { source, adapted } = sides.value;
  if (!about) {
    return source.busy || adapted.busy ? (
      <p class="empty" role="status">
        asking …
      </p>
    ) : (
      <p class="empty">
        Choose a sample, and what the source model and the stream make of it appears here, side by side.
      </p>
    );
  }
  const rows = rowsOf(labelsOf(source), labelsOf(adapted), about.truth, top.value);
  const result = (adapted.answer ?? source.answer)?.results[0];
  const gone = result ? lacked(result) : [];
  return (
    <div class="classify-result">
      <p class="classify-legend">
        <span>
          <i class="swatch c-source" aria-hidden="true" />
          Source model
        </span>
        {!about.off && (
          <span>
            <i class="swatch c-adapted" aria-hidden="true" />
            Adapted stream
          </span>
        )}
        {about.truth !== null && <span class="classify-truth">✓ the true label</span>}
        {gone.map((name) => (
          <Badge key={name} kind="warn">
            no {name}
          </Badge>
        ))}
      </p>
      <p class="unseen" role="status">
        {going.value
          ? ""
          : SIDES.map((side) => heard(sides.value[side], side))
              .filter(Boolean)
              .join(" ")}
      </p>
      {SIDES.map(
        (side) =>
          sides.value[side].trouble && (
            <p key={side} role="alert" class="classify-trouble">
              {TITLES[side]}: {sides.value[side].trouble}
            </p>
          ),
      )}
      <ol class="classify-bars" aria-label="Labels, the likeliest first">
        {rows.map((row) => (
          <Bars key={row.label} row={row} off={about.off} />
        ))}
      </ol>
      {result && (
        <p class="classify-completion">
          {completion(result)} {novelty(result.novelty)}
        </p>
      )}
      <Facts off={about.off} />
    </div>
  );
}

const TITLES: Record<Side, string> = { source: "Source model", adapted: "Adapted stream" };

function heard({ answer }: Answered, side: Side): string {
  const first = answer?.results[0]?.labels[0];
  return first ? `${TITLES[side]}: ${first.label}, ${percent(first.probability, 0)}.` : "";
}

function Bars({ row, off }: { row: Row; off: boolean }) {
  return (
    <li class={row.true ? "classify-true" : ""}>
      <span class="classify-label">
        {row.true && <span aria-hidden="true">✓ </span>}
        {row.label}
        {row.true && <span class="unseen"> (the true label)</span>}
      </span>
      <span class="classify-pair">
        {(off ? (["source"] as const) : SIDES).map((side) => (
          <span key={side} class="classify-bar">
            <i class={`classify-fill classify-of-${side}`} aria-hidden="true">
              <i style={{ width: `${(row[side] ?? 0) * 100}%` }} />
            </i>
            <span>
              <span class="unseen">{TITLES[side]}: </span>
              {percent(row[side])}
            </span>
          </span>
        ))}
      </span>
    </li>
  );
}

function Facts({ off }: { off: boolean }) {
  const { source, adapted } = sides.value;
  const answer = off ? source.answer : adapted.answer;
  return (
    <div class="classify-facts">
      {answer && <Learning answer={answer} off={off} />}
      <p class="hint">
        <span title="How unsure an answer is, in nats: 0 is sure; the logarithm of the number of labels knows nothing.">
          Entropy
        </span>
        : source {entropy(source.answer)}
        {!off && <>, adapted {entropy(adapted.answer)}</>}
        {answer && <> · {figure(answer.timings_ms.total, 2)} ms</>}
      </p>
    </div>
  );
}

const entropy = (answer: ClassifyAnswer | null): string => `${figure(answer?.results[0]?.entropy_nats)} nats`;

function Learning({ answer, off }: { answer: ClassifyAnswer; off: boolean }) {
  const { adaptation } = answer;
  const status = statusOf(adaptation);
  return (
    <>
      <p class="row">
        <Badge kind={status.kind}>{status.label}</Badge>
        <span>
          {off ? answer.model : `${adaptation.method} · version ${adaptation.state_version ?? "–"}`} ·{" "}
          {adaptation.direction.replace("->", " → ")}
        </span>
      </p>
      <p class="hint">
        {!off && adaptation.state_version === 0 && "Nothing learned yet. "}
        {status.text}
      </p>
    </>
  );
}

// A sequence so far ------------------------------------------------------------------------------------------------

/** Samples that the moving accuracy looks back over. */
const WINDOW = 64;

function Sequence() {
  const so = sequence.value;
  if (!so || so.answered === 0)
    return so?.note ? (
      <p role="alert" class="classify-trouble">
        {so.note}
      </p>
    ) : null;
  const { entries } = so;
  const first = so.answered - entries.length;
  const ends = entries.map((_, place) => place + 1);
  const x = ends.map((end) => first + end);
  const both = (of: (side: Side) => (number | null)[]) =>
    SIDES.filter((side) => mode.value !== "off" || side === "source").map((side) => ({
      label: side,
      values: of(side),
      colour: side,
    }));
  const known = SIDES.map((side) => score(entries, side));
  return (
    <div class="classify-sequence">
      <div class="row spread">
        <h3>{so.kind === "live" ? "Since the start" : "Clips so far"}</h3>
        <small>
          {so.answered}
          {so.total === null ? "" : ` of ${so.total}`} answered
        </small>
      </div>
      <p class="unseen" role="status">
        {so.over
          ? `${so.answered} samples answered. ${known[0]!.of ? SIDES.map((side, place) => `${TITLES[side]}: ${known[place]!.right} of ${known[place]!.of} right.`).join(" ") : ""}`
          : ""}
      </p>
      {so.note && (
        <p role="alert" class="classify-trouble">
          {so.note}
        </p>
      )}
      {known[0]!.of > 0 && (
        <div class="classify-tiles">
          {SIDES.map(
            (side, place) =>
              known[place]!.of > 0 && (
                <Tile
                  key={side}
                  side={side}
                  label={TITLES[side]}
                  value={percent(share(known[place]!), 0)}
                  note={`${known[place]!.right} of ${known[place]!.of} right`}
                />
              ),
          )}
        </div>
      )}
      <div class="classify-plots">
        {known[0]!.of > 0 && (
          <Plot
            title="Right so far"
            x={x}
            lines={both((side) => movingAccuracy(entries, side, ends, WINDOW))}
            range={[0, 1]}
            height={110}
            format={(value) => percent(value, 0)}
          />
        )}
        <Plot
          title="Entropy"
          hint="How unsure the answers are, in nats: 0 is sure"
          x={x}
          lines={both((side) => entropies(entries, side, ends))}
          height={110}
          format={(value) => figure(value, 2)}
        />
      </div>
    </div>
  );
}

export function Tile(props: { side: Side; label: string; value: string; note?: string }) {
  return (
    <div class="classify-tile">
      <span>
        <i class={`swatch c-${props.side}`} aria-hidden="true" />
        {props.label}
      </span>
      <b class={`c-${props.side}`}>{props.value}</b>
      {props.note && <small>{props.note}</small>}
    </div>
  );
}
