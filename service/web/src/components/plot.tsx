import "uplot/dist/uPlot.min.css";
import { useEffect, useRef, useState } from "preact/hooks";
import uPlot from "uplot";
import { figure } from "../lib/format.ts";
import { theme } from "./theme.tsx";

export interface Line {
  label: string;
  values: (number | null)[];
  /** Name of a colour of style.css, without its dashes: "adapted", "source", "target", "warn". */
  colour: string;
  dashed?: boolean;
  /** Points alone, for what happens now and then. */
  points?: boolean;
}

export interface Mark {
  at: number;
  label: string;
  colour?: string;
}

interface PlotProps {
  title: string;
  /** What is plotted, in a sentence. */
  hint?: string;
  /** Positions along the x axis, rising. */
  x: number[];
  lines: Line[];
  height?: number;
  /** x counts seconds since 1970. */
  time?: boolean;
  xLabel?: string;
  /** x counts something. */
  whole?: boolean;
  /** Of the y axis; left out: what the values need. */
  range?: [number, number];
  marks?: Mark[];
  format?: (value: number | null | undefined) => string;
  /** Plots of one group show the same place under the cursor. */
  group?: string;
}

const WHOLE = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 5000, 10_000, 100_000, 1_000_000];

const colourOf = (name: string): string =>
  getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim() || "gray";

function options(props: PlotProps, width: number, hover: (place: number | null) => void): uPlot.Options {
  const axis = {
    stroke: colourOf("muted"),
    grid: { stroke: colourOf("line"), width: 1 },
    ticks: { show: false },
    font: "11px system-ui, sans-serif",
  };
  return {
    width,
    height: props.height ?? 160,
    padding: [8, 8, 0, 0],
    legend: { show: false },
    cursor: { y: false, ...(props.group ? { sync: { key: props.group } } : {}), points: { size: 6 } },
    scales: {
      x: { time: props.time ?? false },
      y: props.range ? { range: props.range } : { range: (_, low, high) => padded(low, high) },
    },
    axes: [
      { ...axis, size: 26, gap: 4, ...(props.whole ? { incrs: WHOLE } : {}) },
      { ...axis, size: 44, gap: 4, values: (_, splits) => splits.map((value) => (props.format ?? figure)(value)) },
    ],
    series: [
      {},
      ...props.lines.map((line) => ({
        label: line.label,
        stroke: colourOf(line.colour),
        width: line.points ? 0 : 2,
        ...(line.dashed ? { dash: [5, 4] } : {}),
        points: line.points
          ? { show: true, size: 7, fill: colourOf(line.colour) }
          : { show: props.x.length < 2, size: 5 },
        spanGaps: true,
      })),
    ],
    hooks: {
      setCursor: [(plot) => hover(plot.cursor.idx ?? null)],
      draw: [(plot) => drawMarks(plot, props.marks ?? [])],
    },
  };
}

/** A little air; a flat line lies in the middle. */
function padded(low: number, high: number): [number, number] {
  if (!Number.isFinite(low) || !Number.isFinite(high)) return [0, 1];
  const air = high > low ? (high - low) * 0.12 : Math.max(Math.abs(high) * 0.1, 1e-3);
  return [low >= 0 ? Math.max(0, low - air) : low - air, high + air];
}

function drawMarks(plot: uPlot, marks: Mark[]): void {
  const { ctx, bbox } = plot;
  ctx.save();
  for (const mark of marks) {
    const x = Math.round(plot.valToPos(mark.at, "x", true));
    if (x < bbox.left || x > bbox.left + bbox.width) continue;
    ctx.strokeStyle = colourOf(mark.colour ?? "warn");
    ctx.setLineDash([3, 3]);
    ctx.lineWidth = 1;
    ctx.beginPath();
    ctx.moveTo(x, bbox.top);
    ctx.lineTo(x, bbox.top + bbox.height);
    ctx.stroke();
  }
  ctx.restore();
}

/** Lines over time or batches, with a legend that tells the values (under the cursor, else the last). */
export function Plot(props: PlotProps) {
  const holder = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot | null>(null);
  const [hovered, setHovered] = useState<number | null>(null);
  const shape = JSON.stringify([
    props.lines.map(({ label, colour, dashed, points }) => [label, colour, dashed, points]),
    props.height,
    props.range,
    props.time,
    theme.value,
  ]);
  const marks = JSON.stringify(props.marks ?? []);
  const data = [props.x, ...props.lines.map((line) => line.values)] as uPlot.AlignedData;

  useEffect(() => {
    const element = holder.current;
    if (!element) return undefined;
    const made = new uPlot(options(props, Math.max(120, element.clientWidth), setHovered), data, element);
    plot.current = made;
    const watcher = new ResizeObserver(() => {
      const width = Math.max(120, element.clientWidth);
      if (width !== made.width) made.setSize({ width, height: props.height ?? 160 });
    });
    watcher.observe(element);
    return () => {
      watcher.disconnect();
      made.destroy();
      plot.current = null;
    };
  }, [shape, marks, props.x.length < 2]);

  useEffect(() => plot.current?.setData(data), [data]);

  const format = props.format ?? figure;
  const shown = (values: (number | null)[]) =>
    hovered !== null && hovered < props.x.length ? values[hovered] : values.findLast((value) => value !== null);
  return (
    <figure class="plot" aria-label={summary(props)}>
      <figcaption>
        <span class="plot-title" title={props.hint}>
          {props.title}
        </span>
        <span class="plot-legend">
          {props.lines.map((line) => (
            <span key={line.label}>
              <i class={`swatch ${line.dashed ? "dashed" : ""} c-${line.colour}`} aria-hidden="true" />
              {line.label} <b>{format(shown(line.values))}</b>
            </span>
          ))}
        </span>
      </figcaption>
      <div ref={holder} aria-hidden="true" />
      {props.xLabel && <span class="plot-x">{props.xLabel}</span>}
    </figure>
  );
}

function summary(props: PlotProps): string {
  const format = props.format ?? figure;
  const last = props.lines.map((line) => {
    const known = line.values.filter((value) => value !== null);
    return `${line.label}: from ${format(known[0])} to ${format(known.at(-1))}`;
  });
  return `${props.title}, ${props.x.length} points. ${last.join("; ")}`;
}
