import { figure } from "../lib/format.ts";

/** A small line without axes; the last point is marked. Nothing for less than two values. */
export function Spark(props: { values: (number | null)[]; label: string; width?: number; height?: number; colour?: string }) {
  const { values, width = 88, height = 24, colour = "adapted" } = props;
  const known = values.map((value, place) => [place, value] as const).filter((pair): pair is [number, number] => pair[1] !== null);
  if (known.length < 2) return <span class="spark-none">–</span>;
  const numbers = known.map(([, value]) => value);
  const low = Math.min(...numbers);
  const span = Math.max(...numbers) - low || 1;
  const x = (place: number) => 2 + (place / (values.length - 1)) * (width - 6);
  const y = (value: number) => height - 3 - ((value - low) / span) * (height - 6);
  const [lastPlace, lastValue] = known.at(-1)!;
  return (
    <svg class={`spark c-${colour}`} width={width} height={height} viewBox={`0 0 ${width} ${height}`} role="img"
      aria-label={`${props.label}: from ${figure(numbers[0])} to ${figure(lastValue)}`}>
      <polyline points={known.map(([place, value]) => `${x(place).toFixed(1)},${y(value).toFixed(1)}`).join(" ")} />
      <circle cx={x(lastPlace)} cy={y(lastValue)} r="2.2" />
    </svg>
  );
}
