// Sends a run, one at a time; it goes on while other views are shown.

import { signal, type Signal } from "@preact/signals";
import { freshName } from "./runs.ts";
import { messageOf, streams } from "./state.ts";

export interface Run<Plan, Batch> {
  phase: "running" | "done" | "stopped" | "failed";
  plan: Plan;
  /** What the stream adapts with, as the list of methods calls it. */
  method: string;
  batches: Batch[];
  /** What is waited for; empty: nothing is. */
  waiting: string;
  trouble: string;
}

/** What all plans have. */
export interface Planned {
  stream: string;
  queries: number;
  batch: number;
  /** Of the corruption. */
  seed: number;
}

export class Runner<Plan extends Planned, Batch> {
  readonly run = signal<Run<Plan, Batch> | null>(null);
  readonly starting = signal(false);
  /** Why the last run could not be started. */
  readonly trouble = signal("");
  /** A name that the person at the page gave; "": one that is new. */
  readonly ownName = signal("");
  /** What the next run will be. */
  readonly queries: Signal<number>;
  readonly batchSize: Signal<number>;
  readonly method: Signal<string>;
  private readonly used = new Set<string>();
  private controller = new AbortController();

  constructor(usual: { queries: number; batchSize: number; method: string }) {
    this.queries = signal(usual.queries);
    this.batchSize = signal(usual.batchSize);
    this.method = signal(usual.method);
  }

  get going(): boolean {
    return this.run.value?.phase === "running";
  }

  /** What the next run's stream is called; `base`: what it is about. */
  nameOf(base: string): string {
    return this.ownName.value || freshName(base, new Set([...this.used, ...streams.value.keys()]));
  }

  /** Put what is waited for on the page. */
  readonly waiting = (why: string): void => this.change({ waiting: why });

  stop(): void {
    this.controller.abort();
  }

  /**
   * `prepare` readies the stream and gives the batches to come; null: the person would rather not. `keep` is what of
   * the batches before is still looked at when another comes.
   */
  async start(
    plan: Plan,
    method: string,
    prepare: (signal: AbortSignal) => Promise<AsyncIterable<Batch> | null>,
    keep: (before: Batch) => Batch = (before) => before,
  ): Promise<void> {
    this.controller.abort();
    const { signal } = (this.controller = new AbortController());
    this.starting.value = true;
    this.trouble.value = "";
    let coming: AsyncIterable<Batch> | null;
    try {
      coming = await prepare(signal);
    } catch (error) {
      if (!signal.aborted) this.trouble.value = messageOf(error);
      return;
    } finally {
      this.starting.value = false;
    }
    if (!coming) return;
    this.used.add(plan.stream);
    this.ownName.value = "";
    this.run.value = { phase: "running", plan, method, batches: [], waiting: "", trouble: "" };
    await this.follow(coming, keep, signal);
  }

  private async follow(
    coming: AsyncIterable<Batch>,
    keep: (before: Batch) => Batch,
    signal: AbortSignal,
  ): Promise<void> {
    try {
      for await (const batch of coming) {
        if (signal.aborted) break;
        this.change({ batches: [...(this.run.value?.batches ?? []).map(keep), batch] });
      }
      this.change({ phase: signal.aborted ? "stopped" : "done", waiting: "" });
    } catch (error) {
      if (signal.aborted) this.change({ phase: "stopped", waiting: "" });
      else this.change({ phase: "failed", waiting: "", trouble: messageOf(error) });
    }
  }

  private change(next: Partial<Run<Plan, Batch>>): void {
    if (this.run.value) this.run.value = { ...this.run.value, ...next };
  }
}
