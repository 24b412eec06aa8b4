import { figure } from "../lib/format.ts";

/** A small line without axes, and a dashed one to where it should go; the last point is marked. Nothing for less than two values. */
export function Spark(props: {
  values: (number | null)[];
  target?: (number | null)[];
  label: string;
  width?: number;
  height?: number;
  colour?: string;
}) {
  const { values, width = 88, height = 24, colour = "adapted" } = props;
  const known = knownOf(values);
  const target = knownOf(props.target ?? []);
  if (known.length < 2) return <span class="spark-none">–</span>;
  const numbers = known.map(([, value]) => value);
  const all = [...numbers, ...target.map(([, value]) => value)];
  const low = Math.min(...all);
  const span = Math.max(...all) - low || 1;
  const x = (place: number) => 2 + (place / (values.length - 1)) * (width - 6);
  const y = (value: number) => height - 3 - ((value - low) / span) * (height - 6);
  const points = (pairs: [number, number][]) =>
    pairs.map(([place, value]) => `${x(place).toFixed(1)},${y(value).toFixed(1)}`).join(" ");
  const [lastPlace, lastValue] = known.at(-1)!;
  return (
    <svg
      class={`spark c-${colour}`}
      width={width}
      height={height}
      viewBox={`0 0 ${width} ${height}`}
      role="img"
      aria-label={`${props.label}: from ${figure(numbers[0])} to ${figure(lastValue)}`}
    >
      {target.length > 1 && <polyline class="spark-target" points={points(target)} />}
      <polyline points={points(known)} />
      <circle cx={x(lastPlace)} cy={y(lastValue)} r="2.2" />
    </svg>
  );
}

/** Places and values of what is known. */
function knownOf(values: (number | null)[]): [number, number][] {
  return values
    .map((value, place) => [place, value] as const)
    .filter((pair): pair is [number, number] => pair[1] !== null);
}
