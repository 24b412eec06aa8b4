import { Spark } from "../../components/spark.tsx";
import { count, figure } from "../../lib/format.ts";
import type { StreamCard } from "../../lib/types.ts";
import { latest } from "./condition.ts";
import { batchesOf, gatheredOf, type Row } from "./order.ts";
import { trackTitle } from "./parts.tsx";

type Trended = "modality_gap" | "uniformity" | "entropy_nats" | "shift";

/** Figures that are shown of each stream, with how they went lately. */
export const TRENDS: readonly { name: Trended; label: string }[] = [
  { name: "modality_gap", label: "Modality gap" },
  { name: "uniformity", label: "Uniformity" },
  { name: "entropy_nats", label: "Entropy" },
  { name: "shift", label: "Shift" },
];

export function Trend({ row, name, label }: { row: Row; name: Trended; label: string }) {
  const recent = row.track?.recent;
  const values = recent?.[name] ?? [];
  const target = name === "modality_gap" ? latest(recent?.modality_gap_target) : null;
  return (
    <span class="streams-trend">
      {values.filter((value) => value !== null).length > 1 && (
        <Spark
          values={values}
          {...(target !== null && recent?.modality_gap_target ? { target: recent.modality_gap_target } : {})}
          label={label}
          width={72}
          height={24}
        />
      )}
      <span class="streams-figure">
        {figure(latest(values))}
        {target !== null && (
          <small class="c-target" title="Target">
            → {figure(target)}
          </small>
        )}
      </span>
    </span>
  );
}

export function Batches({ card }: { card: StreamCard }) {
  const { applied, skipped, undone } = batchesOf(card);
  return (
    <span title={`${applied} learned from, ${skipped} skipped, ${undone} undone`}>
      {count(applied)}
      {(skipped > 0 || undone > 0) && (
        <small class="streams-under">
          {skipped > 0 && <span class="c-warn">{count(skipped)} skipped</span>}
          {undone > 0 && <span class="c-bad">{count(undone)} undone</span>}
        </small>
      )}
    </span>
  );
}

export function Queue({ card }: { card: StreamCard }) {
  const gathered = gatheredOf(card);
  return (
    <span title={`${card.waiting ?? "an unknown number of"} queries in the queue, ${gathered} gathered`}>
      {card.waiting ?? "–"}
      {gathered > 0 && <small class="streams-under">{count(gathered)} gathered</small>}
    </span>
  );
}

/** The track that speaks for the stream, and how many others there are. */
export const nameOfTrack = ({ card, track }: Row): string =>
  !track ? "no queries yet" : trackTitle(track) + (card.tracks.length > 1 ? ` +${card.tracks.length - 1}` : "");
