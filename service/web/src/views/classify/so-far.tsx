import { Plot } from "../../components/plot.tsx";
import { Tile } from "../../components/run.tsx";
import { Trouble } from "../../components/trouble.tsx";
import { figure, percent } from "../../lib/format.ts";
import { bothSides, SIDES, type Side } from "../../lib/runs.ts";
import { entropies, movingAccuracy, score, share, type Entry, type Score } from "./course.ts";
import { mode, sequence } from "./state.ts";
import { TITLES } from "./words.ts";

/** Samples that the moving accuracy looks back over. */
const WINDOW = 64;

/** What the samples of a sequence have come to. */
export function SoFar() {
  const so = sequence.value;
  if (!so) return null;
  const note = so.note && <Trouble>{so.note}</Trouble>;
  if (so.answered === 0) return <>{note}</>;
  const { entries } = so;
  const scores = Object.fromEntries(SIDES.map((side) => [side, score(entries, side)])) as Record<Side, Score>;
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
        {so.over ? `${so.answered} samples answered. ${heard(scores)}` : ""}
      </p>
      {note}
      {scores.source.of > 0 && <Tiles scores={scores} />}
      <Plots entries={entries} first={so.answered - entries.length} known={scores.source.of > 0} />
    </div>
  );
}

const rightOf = ({ right, of }: Score): string => `${right} of ${of} right`;

const heard = (scores: Record<Side, Score>): string =>
  scores.source.of > 0 ? SIDES.map((side) => `${TITLES[side]}: ${rightOf(scores[side])}.`).join(" ") : "";

function Tiles({ scores }: { scores: Record<Side, Score> }) {
  return (
    <div class="run-tiles">
      {SIDES.filter((side) => scores[side].of > 0).map((side) => (
        <Tile
          key={side}
          side={side}
          label={TITLES[side]}
          value={percent(share(scores[side]), 0)}
          note={rightOf(scores[side])}
        />
      ))}
    </div>
  );
}

/** `first`: samples that were answered before these entries. `known`: whether their truth is. */
function Plots({ entries, first, known }: { entries: readonly Entry[]; first: number; known: boolean }) {
  const ends = entries.map((_, place) => place + 1);
  const x = ends.map((end) => first + end);
  const shown = mode.value === "off" ? (["source"] as const) : SIDES;
  return (
    <div class="classify-plots">
      {known && (
        <Plot
          title="Right so far"
          x={x}
          lines={bothSides((side) => movingAccuracy(entries, side, ends, WINDOW), shown)}
          range={[0, 1]}
          height={110}
          format={(value) => percent(value, 0)}
        />
      )}
      <Plot
        title="Entropy"
        hint="How unsure the answers are, in nats: 0 is sure"
        x={x}
        lines={bothSides((side) => entropies(entries, side, ends), shown)}
        height={110}
        format={(value) => figure(value, 2)}
      />
    </div>
  );
}
