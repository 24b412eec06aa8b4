import "./run.css";
import type { ComponentChildren } from "preact";
import { useEffect, useRef } from "preact/hooks";
import { link } from "../lib/router.ts";
import type { MethodChoice } from "../lib/methods.ts";
import type { Planned, Run, Runner } from "../lib/runner.ts";
import { learnedFrom, type Side } from "../lib/runs.ts";
import { config } from "../lib/state.ts";
import { Progress, Select } from "./fields.tsx";
import { StreamField } from "./stream-field.tsx";
import { Trouble } from "./trouble.tsx";

/** Sends a stream of corrupted queries and shows what adaptation makes of it. `start`: null while there is no way to. */
export function RunCard<Plan extends Planned, Batch>(props: {
  id: string;
  runner: Runner<Plan, Batch>;
  hint: string;
  start: (() => void) | null;
  /** What the next run will be. */
  fields: ComponentChildren;
  /** What has come of this one. */
  children: ComponentChildren;
}) {
  const { id, runner } = props;
  const asked = useRef(false);
  const start =
    props.start &&
    (() => {
      asked.current = true;
      props.start?.();
    });
  const seen = runner.going && Boolean(runner.run.value?.batches.length);
  // What comes of it grows below the button; before the first batch there is too little to scroll to.
  useEffect(() => {
    if (!seen || !asked.current) return;
    asked.current = false;
    document.getElementById(id)?.scrollIntoView({ behavior: "smooth" });
  }, [seen]);
  return (
    <section class="card run" id={id} aria-labelledby={`${id}-title`}>
      <div class="card-head">
        <div>
          <h2 id={`${id}-title`} tabIndex={-1}>
            Send a stream
          </h2>
          <p class="hint">{props.hint}</p>
        </div>
        <Buttons runner={runner} start={start} />
      </div>
      <div class={`run-plan ${id}-plan`}>{props.fields}</div>
      {runner.trouble.value && <Trouble>{runner.trouble.value}</Trouble>}
      {props.children}
    </section>
  );
}

function Buttons<Plan extends Planned, Batch>(props: { runner: Runner<Plan, Batch>; start: (() => void) | null }) {
  const { runner, start } = props;
  const starter = useRef<HTMLButtonElement>(null);
  const ready = start !== null && !runner.going && !runner.starting.value;
  const stop = () => {
    runner.stop();
    // "Stop" goes away; the focus must not go with it.
    starter.current?.focus();
  };
  return (
    <span class="row">
      {runner.going && (
        <button type="button" onClick={stop}>
          Stop
        </button>
      )}
      <button ref={starter} type="button" class="primary" aria-disabled={!ready} onClick={() => ready && start()}>
        {runner.starting.value ? "Starting …" : runner.going ? "Sending …" : "Start"}
      </button>
    </span>
  );
}

/** How many, how many at a time, and the stream that learns from them. `base`: what the stream is named after. */
export function PlanFields<Plan extends Planned, Batch>(props: {
  runner: Runner<Plan, Batch>;
  counts: readonly number[];
  sizes: readonly number[];
  base: string;
  methods: readonly MethodChoice[];
}) {
  const { runner, counts, methods } = props;
  const disabled = runner.going || runner.starting.value;
  const most = Math.min(config.value?.limits.batch_size ?? 64, config.value?.limits.queries ?? 64);
  const sizes = props.sizes.filter((size) => size <= most);
  return (
    <>
      <Select
        label="How many"
        value={String(runner.queries.value)}
        choices={counts.map(String)}
        disabled={disabled}
        change={(value) => (runner.queries.value = Number(value))}
      />
      <Select
        label="A batch"
        value={String(runner.batchSize.value)}
        choices={(sizes.length ? sizes : [most]).map(String)}
        disabled={disabled}
        change={(value) => (runner.batchSize.value = Number(value))}
      />
      <StreamField
        label="Stream's name"
        value={runner.going ? runner.run.value!.plan.stream : runner.nameOf(props.base)}
        change={(name) => (runner.ownName.value = name)}
        disabled={disabled}
      />
      <Select
        label="Stream's method"
        value={runner.method.value}
        choices={methods}
        disabled={disabled}
        change={(value) => (runner.method.value = value)}
      />
    </>
  );
}

/** How far a run is, and what it has come to. */
export function Course<Plan extends Planned, Batch extends { status: string; reason: string }>(props: {
  run: Run<Plan, Batch>;
  sent: number;
  /** What is sent: "queries". */
  things: string;
  /** What is done to them; empty: nothing. */
  shift: string;
  tiles: ComponentChildren;
  /** What the tiles are about. */
  measure: string;
  /** Which side was better; undefined: nothing was answered. */
  verdict: string | undefined;
  /** What can be done with one of them once the run is over. */
  again: { label: string; act: () => void };
  children: ComponentChildren;
}) {
  const { run, sent, things } = props;
  const { phase, plan, batches } = run;
  const going = phase === "running";
  const stopped = phase === "done" ? "" : `Stopped after ${sent} of ${plan.queries} ${things}. `;
  const clean = props.shift ? "" : `These ${things} were clean. `;
  return (
    <div class="run-course">
      <Progress
        value={sent / plan.queries}
        label={run.waiting || `${sent} of ${plan.queries} ${things} sent to ${plan.stream}`}
      />
      <div class="run-summary">
        <div class="run-tiles" role="group" aria-label={`${props.measure} over the second half`}>
          {props.tiles}
        </div>
        <div class="run-verdict">
          <p role="status">{going ? "" : `${stopped}${clean}${props.verdict ?? "Nothing was answered."}`}</p>
          {phase === "failed" && <Trouble>Stopped by an error: {run.trouble}</Trouble>}
          {going && (
            <p class="muted">
              {props.shift || `clean ${things}`} · {run.method}
            </p>
          )}
          <p class="hint">{learnedFrom(batches)}</p>
          {!going && batches.length > 0 && (
            <p class="row">
              <button type="button" onClick={props.again.act}>
                {props.again.label}
              </button>
              <a class="button" href={link("streams", plan.stream)}>
                Open the stream
              </a>
            </p>
          )}
        </div>
      </div>
      {props.children}
    </div>
  );
}

/** One figure of one side. */
export function Tile(props: { side: Side; label: string; value: string; note?: string }) {
  return (
    <div class="run-tile">
      <span>
        <i class={`swatch c-${props.side}`} aria-hidden="true" />
        {props.label}
      </span>
      <b class={`c-${props.side}`}>{props.value}</b>
      {props.note && <small>{props.note}</small>}
    </div>
  );
}
