import { Badge } from "../../components/fields.tsx";
import { Trouble } from "../../components/trouble.tsx";
import { figure, percent } from "../../lib/format.ts";
import { statusOf } from "../../lib/learning.ts";
import { SIDES, type Side } from "../../lib/runs.ts";
import type { ClassifyAnswer } from "../../lib/types.ts";
import { rowsOf, type Row } from "./labels.ts";
import { going, shown, sides, top, type Answered } from "./state.ts";
import { completion, lacked, novelty, TITLES } from "./words.ts";

const labelsOf = (side: Answered) => side.answer?.results[0]?.labels ?? null;

/** What both models say of the sample, side by side. */
export function Result() {
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
            <Trouble key={side}>
              {TITLES[side]}: {sides.value[side].trouble}
            </Trouble>
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
  const status = statusOf(adaptation, "sample");
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
