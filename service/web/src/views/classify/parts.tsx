import { useEffect, useRef, useState } from "preact/hooks";
import { bytesOf, decoded, peaks } from "./sound.ts";

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
