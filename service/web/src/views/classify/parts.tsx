import { useEffect, useRef, useState } from "preact/hooks";
import { Select, Slider, type Choice } from "../../components/fields.tsx";
import { words as spaced } from "../../lib/format.ts";
import type { Corruption, Medium } from "./run.ts";
import { bytesOf, decoded, peaks } from "./sound.ts";
import { corruptions } from "./state.ts";

const CLEAN = "";
const STRONGEST = 5;

function choicesOf(medium: Medium): Choice<string>[] {
  const cards = corruptions.value?.[medium] ?? [];
  return [
    { value: CLEAN, label: "clean" },
    ...cards.map((card) => ({ value: card.name, label: spaced(card.name), group: card.group })),
  ];
}

/** Which corruption and how strong; null: none. */
export function CorruptionFields(props: {
  medium: Medium;
  label: string;
  value: Corruption | null;
  change: (value: Corruption | null) => void;
  disabled?: boolean;
}) {
  const { value, disabled = false } = props;
  return (
    <>
      <Select
        label={props.label}
        value={value?.name ?? CLEAN}
        choices={choicesOf(props.medium)}
        disabled={disabled}
        change={(name) => props.change(name === CLEAN ? null : { name, severity: value?.severity ?? STRONGEST })}
      />
      <Slider
        label="Severity"
        value={value?.severity ?? STRONGEST}
        min={1}
        max={STRONGEST}
        disabled={value === null || disabled}
        change={(severity) => value && props.change({ ...value, severity })}
      />
    </>
  );
}

const COLUMNS = 96;
const HEIGHT = 64;

/** How loud a sound is from its beginning to its end. */
export function Wave(props: { uri: string; label: string }) {
  const [heights, setHeights] = useState<{ values: number[]; seconds: number } | null>(null);
  useEffect(() => {
    let gone = false;
    decoded(bytesOf(props.uri).buffer).then(
      ({ samples, seconds }) => !gone && setHeights({ values: peaks(samples, COLUMNS), seconds }),
      () => !gone && setHeights(null),
    );
    return () => {
      gone = true;
    };
  }, [props.uri]);
  const path = heights?.values
    .map((value, column) => {
      const half = Math.max(0.75, value * (HEIGHT / 2 - 2));
      return `M${column * 2 + 1} ${(HEIGHT / 2 - half).toFixed(1)}V${(HEIGHT / 2 + half).toFixed(1)}`;
    })
    .join("");
  return (
    <svg
      class="classify-wave"
      viewBox={`0 0 ${COLUMNS * 2} ${HEIGHT}`}
      preserveAspectRatio="none"
      role="img"
      aria-label={`${props.label}${heights ? `, ${heights.seconds.toFixed(1)} seconds` : ""}`}
    >
      {path && <path d={path} />}
    </svg>
  );
}

/** Plays a sound, and stops it. */
export function Hear(props: { uri: string; label: string }) {
  const [playing, setPlaying] = useState(false);
  const audio = useRef<HTMLAudioElement | null>(null);
  const stop = () => {
    audio.current?.pause();
    audio.current = null;
    setPlaying(false);
  };
  useEffect(() => stop, [props.uri]);
  const play = () => {
    const made = (audio.current = new Audio(props.uri));
    made.addEventListener("ended", stop);
    setPlaying(true);
    made.play().catch(stop);
  };
  return (
    <button
      type="button"
      class="classify-hear"
      aria-label={playing ? "Stop the sound" : props.label}
      onClick={playing ? stop : play}
    >
      <span aria-hidden="true">{playing ? "■" : "▶"}</span>
      {playing ? "Stop" : "Hear"}
    </button>
  );
}
