import { useMemo } from "preact/hooks";
import { Plot, type Line } from "../../components/plot.tsx";
import { bytes, count, figure, moment } from "../../lib/format.ts";
import { config } from "../../lib/state.ts";
import type { Figure, History, Track } from "../../lib/types.ts";
import { found, latest, restWords } from "./condition.ts";
import { EventLine } from "./events.tsx";
import { marksOf } from "./history.ts";
import { trackTitle } from "./parts.tsx";

/** One place where a stream adapts: what became of its batches, and what the guard says. */
export function TrackSection(props: { track: Track; history: History; method: string; now: number; group: string }) {
  const { track, history } = props;
  const title = trackTitle(track);
  const id = `track-${props.group}`;
  return (
    <section class="card" aria-labelledby={id}>
      <div class="card-head">
        <h2 id={id}>{title}</h2>
        <span class="muted">
          {props.method}, version {track.version}
        </span>
      </div>
      <p class="streams-last">{lastWords(track)}</p>
      <div class="streams-body">
        <div>
          {history.at.length === 0 ? (
            <NoBatches track={track} />
          ) : (
            <Plots history={history} track={track} group={props.group} />
          )}
        </div>
        <div class="stack">
          <Figures track={track} />
          <Guard track={track} now={props.now} />
        </div>
      </div>
    </section>
  );
}

const STATUS: Record<string, string> = { applied: "was learned from", skipped: "was skipped", undone: "was undone" };

/** What became of the last batch, in a sentence. */
function lastWords({ recent, last_reason: reason }: Track): string {
  const status = recent?.status.at(-1);
  if (!status) return "No batch has come together yet.";
  const because = reason ? `: ${reason.replace(/^guard: /, "the guard says ")}` : "";
  return `The last batch ${STATUS[status]}${because}.`;
}

function NoBatches({ track }: { track: Track }) {
  const size = config.value?.limits.batch_size;
  return (
    <div class="empty">
      <p>Nothing to plot yet.</p>
      <p>
        {count(track.gathered)} {track.gathered === 1 ? "query is" : "queries are"} gathered
        {size ? ` of the ${size} that make a full batch` : ""}.
      </p>
    </div>
  );
}

interface Chart {
  title: string;
  hint: string;
  figure: Figure;
  target?: Figure;
}

const CHARTS: readonly Chart[] = [
  {
    title: "Modality gap",
    hint: "How far the queries lie from what is searched. Adaptation moves it to the target, which is what clean queries have.",
    figure: "modality_gap",
    target: "modality_gap_target",
  },
  {
    title: "Uniformity",
    hint: "How widely the queries are spread. Near 0 they are almost the same.",
    figure: "uniformity",
  },
  {
    title: "Entropy (nats)",
    hint: "How undecided the model is between the candidates. It falls as the model becomes surer.",
    figure: "entropy_nats",
  },
  { title: "Shift", hint: "How far the queries are from clean ones; clean ones are at 1.", figure: "shift" },
  { title: "Loss", hint: "What the method makes smaller. Compare it within one stream only.", figure: "loss" },
];

const known = (values: readonly (number | null)[] | undefined): boolean => latest(values) !== null;

function Plots({ history, track, group }: { history: History; track: Track; group: string }) {
  const events = track.guard.events;
  const charts = CHARTS.filter((chart) => known(history[chart.figure]));
  return useMemo(() => {
    const x = history.batch ?? history.at.map((_, place) => place + 1);
    const marks = marksOf(history, events);
    return (
      <>
        <Strip history={history} />
        <div class="streams-plots">
          {charts.map((chart) => (
            <Plot
              key={chart.figure}
              title={chart.title}
              hint={chart.hint}
              x={x}
              lines={linesOf(chart, history)}
              marks={marks}
              group={group}
              height={140}
              xLabel="batch"
              whole
            />
          ))}
        </div>
        <details class="streams-meaning">
          <summary>What the plots show</summary>
          <dl>
            {charts.map((chart) => (
              <div key={chart.figure}>
                <dt>{chart.title}</dt>
                <dd>{chart.hint}</dd>
              </div>
            ))}
            <div>
              <dt>Dashed upright lines</dt>
              <dd>
                What the guard did, batches that were undone, and where skipping began: <span class="c-bad">red</span>{" "}
                where learning was taken back, <span class="c-warn">amber</span> else.
              </dd>
            </div>
          </dl>
        </details>
      </>
    );
  }, [history, events.length, group]);
}

function linesOf({ title, figure: name, target }: Chart, history: History): Line[] {
  const lines: Line[] = [
    {
      label: target ? "now" : title.replace(/ \(.*/, "").toLowerCase(),
      values: history[name] ?? [],
      colour: "adapted",
    },
  ];
  const wanted = target && history[target];
  if (wanted && known(wanted)) lines.push({ label: "target", values: wanted, colour: "target", dashed: true });
  return lines;
}

/** Cells that the strip has room for, at least. */
const FEWEST_CELLS = 60;

/** A cell a batch: what became of it. */
function Strip({ history }: { history: History }) {
  const counts = { applied: 0, skipped: 0, undone: 0 };
  for (const status of history.status) counts[status]++;
  const words = `The last ${history.status.length} batches: ${counts.applied} learned from, ${counts.skipped} skipped, ${counts.undone} undone`;
  return (
    <div class="streams-strip">
      <p>
        <span class="plot-title">Last {history.status.length} batches</span>
        <span class="c-adapted">■ {counts.applied} learned from</span>
        <span class="c-warn">■ {counts.skipped} skipped</span>
        <span class="c-bad">■ {counts.undone} undone</span>
      </p>
      <svg
        viewBox={`0 0 ${Math.max(history.status.length, FEWEST_CELLS)} 1`}
        preserveAspectRatio="none"
        role="img"
        aria-label={words}
      >
        {history.status.map((status, place) => (
          <rect key={place} class={`streams-${status}`} x={place} y="0" width="0.86" height="1">
            <title>{`Batch ${history.batch?.[place] ?? place + 1} ${STATUS[status]}, ${moment(history.at[place]!)}`}</title>
          </rect>
        ))}
      </svg>
    </div>
  );
}

function Figures({ track }: { track: Track }) {
  const facts: [string, string][] = [
    ["Learned from", count(track.applied)],
    ["Skipped", count(track.skipped)],
    ["Undone", count(track.undone)],
    ["Gathered", count(track.gathered)],
    ["Remembered pairs", count(track.memory_size)],
    ["State", bytes(track.state_bytes)],
  ];
  if (track.shed > 0) facts.push(["Shed under load", count(track.shed)]);
  return (
    <div>
      <h3>Figures</h3>
      <dl class="streams-facts">
        {facts.map(([name, value]) => (
          <div key={name}>
            <dt>{name}</dt>
            <dd>{value}</dd>
          </div>
        ))}
      </dl>
    </div>
  );
}

const POLICIES: Record<string, string> = {
  off: "The guard is off.",
  warn: "The guard only warns.",
  freeze: "The guard stops learning while something is wrong.",
  rollback: "The guard goes back to the last good state when adaptation does harm.",
  reset: "The guard goes back to the source model when adaptation does harm.",
};

/** Compared by the guard, with their names for people. */
const COMPARED: [string, string][] = [
  ["modality_gap", "Modality gap"],
  ["source_likeness", "Unlike clean queries"],
  ["top1_similarity", "Nearest item's similarity"],
  ["uniformity", "Uniformity"],
  ["entropy_nats", "Entropy (nats)"],
];

function Guard({ track, now }: { track: Track; now: number }) {
  const { guard } = track;
  const compared = COMPARED.filter(([name]) => `source.${name}` in guard.figures && `adapted.${name}` in guard.figures);
  return (
    <div>
      <h3>Guard</h3>
      <p class="hint">{guard.why ? sentence(guard.why) : (POLICIES[guard.policy] ?? guard.policy)}</p>
      {guard.policy !== "off" && (
        <p class={guard.finding || guard.cooldown_batches > 0 ? "c-warn" : ""}>{guardWords(track)}</p>
      )}
      {compared.length > 0 && (
        <table class="streams-compared">
          <caption>A sample of the same queries, by both models on one scale; the plots are by the method's</caption>
          <thead>
            <tr>
              <th scope="col">Last batch</th>
              <th scope="col" class="number c-source">
                Source
              </th>
              <th scope="col" class="number c-adapted">
                Adapted
              </th>
            </tr>
          </thead>
          <tbody>
            {compared.map(([name, title]) => (
              <tr key={name}>
                <th scope="row">{title}</th>
                <td class="number">{figure(guard.figures[`source.${name}`])}</td>
                <td class="number">{figure(guard.figures[`adapted.${name}`])}</td>
              </tr>
            ))}
          </tbody>
        </table>
      )}
      {guard.events.length > 0 && (
        <ol class="streams-feed streams-own" aria-label="Guard events">
          {guard.events.toReversed().map((event) => (
            <EventLine key={`${event.time} ${event.batch}`} event={event} now={now} />
          ))}
        </ol>
      )}
    </div>
  );
}

const sentence = (text: string): string => `${text.charAt(0).toUpperCase()}${text.slice(1)}.`;

function guardWords({ guard }: Track): string {
  const finding = guard.finding ? `In the last batch: ${found(guard.finding)}.` : "Nothing found in the last batch.";
  const rest = guard.cooldown_batches > 0 ? ` Learns again after ${restWords(guard.cooldown_batches)}.` : "";
  const good =
    guard.good_version !== null && guard.policy === "rollback"
      ? ` The last good state is version ${guard.good_version}.`
      : "";
  return finding + rest + good;
}
