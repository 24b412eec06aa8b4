import { useEffect, useState } from "preact/hooks";
import { Dialog } from "../../components/dialog.tsx";
import { get, part } from "../../lib/api.ts";
import { count, figure, moment, percent } from "../../lib/format.ts";
import { pythonCall } from "../../lib/snippets.ts";
import { messageOf } from "../../lib/state.ts";
import type { ComparedSide, ComparedTrack, Comparison, Json } from "../../lib/types.ts";
import { keyTitle } from "./parts.tsx";

/** Two snapshots side by side; an empty `second` is the stream as it is. */
export function CompareDialog(props: { stream: string; first: string; second: string; close: () => void }) {
  const { stream, first, second } = props;
  const [answer, setAnswer] = useState<Comparison | null>(null);
  const [wrong, setWrong] = useState("");
  useEffect(() => {
    const controller = new AbortController();
    const query = second ? `?with=${part(second)}` : "";
    get<Comparison>(`/admin/streams/${part(stream)}/snapshots/${part(first)}/compare${query}`, {
      signal: controller.signal,
      remember: true,
      python: `print(${pythonCall("client.compare_snapshots", [stream, first, ...(second ? [second] : [])])})`,
    }).then(setAnswer, (error: unknown) => controller.signal.aborted || setWrong(messageOf(error)));
    return () => controller.abort();
  }, [stream, first, second]);
  return (
    <Dialog title={`${first} and ${second || "now"}`} close={props.close} wide>
      {wrong && (
        <p class="c-bad" role="alert">
          {wrong}
        </p>
      )}
      {!answer && !wrong && <p class="muted">Comparing …</p>}
      {answer && <Compared answer={answer} />}
    </Dialog>
  );
}

const titleOf = (side: ComparedSide): string => side.name ?? "now";

type TableRow = [title: string, first: string, second: string];

function Compared({ answer }: { answer: Comparison }) {
  const { first, second } = answer;
  const rows: TableRow[] = [
    ["Taken", moment(first.created_at), second.name === null ? "now" : moment(second.created_at)],
    ["Version", String(first.version), String(second.version)],
    ["Batches", count(first.batches), count(second.batches)],
    ["Method", methodOf(first), methodOf(second)],
  ];
  if (first.classify ?? second.classify)
    rows.push(["Classification", methodOf(first.classify), methodOf(second.classify)]);
  const tracks = Object.entries(answer.tracks);
  return (
    <div class="stack">
      <SideBySide caption="In all" first={titleOf(first)} second={titleOf(second)} rows={rows} />
      {tracks.length === 0 && <p class="muted">Neither has learned anything yet.</p>}
      {tracks.map(([key, track]) => (
        <section key={key} class="stack streams-compared-track">
          <h3>{keyTitle(key)}</h3>
          {track.in !== "both" && (
            <p class="muted">Only “{track.in === "first" ? titleOf(first) : titleOf(second)}” has adapted here.</p>
          )}
          {track.distance !== null && (
            <p>
              {track.distance === 0 ? (
                "Their weights are the same."
              ) : (
                <>
                  Their weights are <b>{percent(track.distance, 2)}</b> apart, measured by the length of the source's.
                </>
              )}
            </p>
          )}
          <SideBySide
            caption={keyTitle(key)}
            first={titleOf(first)}
            second={titleOf(second)}
            rows={trackRows(track.first, track.second)}
          />
          {track.parameters.length > 0 && <Layers parameters={track.parameters} />}
        </section>
      ))}
    </div>
  );
}

function methodOf(side: { method: string; settings: Record<string, Json> } | null): string {
  if (!side) return "–";
  const settings = Object.entries(side.settings).map(([name, value]) => `${name} ${String(value)}`);
  return settings.length > 0 ? `${side.method} (${settings.join(", ")})` : side.method;
}

function trackRows(first: ComparedTrack | null, second: ComparedTrack | null): TableRow[] {
  const row = (title: string, value: (side: ComparedTrack) => string): TableRow => [
    title,
    first ? value(first) : "–",
    second ? value(second) : "–",
  ];
  return [
    row("Version", (side) => String(side.version)),
    row(
      "Learned from / skipped / undone",
      (side) => `${count(side.applied)} / ${count(side.skipped)} / ${count(side.undone)}`,
    ),
    row("Distance from the source", (side) => percent(side.distance_from_source, 2)),
    row("Modality gap", (side) => figure(side.drift?.modality_gap)),
    row("Its target", (side) => figure(side.drift?.modality_gap_target)),
    row("Uniformity", (side) => figure(side.drift?.uniformity)),
    row("Entropy (nats)", (side) => figure(side.drift?.entropy_nats)),
    row("Shift", (side) => figure(side.drift?.shift)),
    row("Loss", (side) => figure(side.losses?.total)),
    row("Remembered pairs", (side) => count(side.memory_size)),
  ].filter(([, one, other]) => one !== "–" || other !== "–") as TableRow[];
}

function SideBySide(props: { caption: string; first: string; second: string; rows: TableRow[] }) {
  return (
    <div class="scroll">
      <table class="streams-sides">
        <caption class="unseen">{props.caption}</caption>
        <thead>
          <tr>
            <td />
            <th scope="col" class="number">
              {props.first}
            </th>
            <th scope="col" class="number">
              {props.second}
            </th>
          </tr>
        </thead>
        <tbody>
          {props.rows.map(([title, one, other]) => (
            <tr key={title} class={one === other || title === "Taken" ? "" : "streams-differs"}>
              <th scope="row">{title}</th>
              <td class="number">{one}</td>
              <td class="number">{other}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

/** The layers that differ most, the farthest first. */
function Layers({ parameters }: { parameters: Comparison["tracks"][string]["parameters"] }) {
  const most = Math.max(...parameters.map(({ distance }) => distance));
  return (
    <div>
      <h4 class="streams-h4">Layers that differ most</h4>
      <ul class="streams-bars">
        {parameters.map(({ name, size, distance }) => (
          <li key={name} title={`${count(size)} numbers`}>
            <code>{name}</code>
            <svg viewBox="0 0 100 1" preserveAspectRatio="none" aria-hidden="true">
              <rect width={(distance / most) * 100} height="1" />
            </svg>
            <span>{percent(distance, 2)}</span>
          </li>
        ))}
      </ul>
    </div>
  );
}
