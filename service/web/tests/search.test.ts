import assert from "node:assert/strict";
import { test } from "node:test";
import { ApiError } from "../src/lib/api.ts";
import { statusOf } from "../src/lib/learning.ts";
import { everyOne, pauseAfter } from "../src/lib/patience.ts";
import type { History, Models, RetrieveAnswer } from "../src/lib/types.ts";
import { figuresOf, movingRecall, verdict } from "../src/views/search/course.ts";
import { methodChoices, QUICK } from "../src/views/search/methods.ts";
import { order, send, type Asks, type Batch, type Plan } from "../src/views/search/send.ts";
import { differences } from "../src/views/search/words.ts";

const shown = (pieces: { text: string; changed: boolean }[]) =>
  pieces.map(({ text, changed }) => (changed ? `[${text}]` : text)).join("");

test("changed characters are marked, and those that are gone", () => {
  const replaced = differences("a red star", "a r3d stars");
  assert.equal(shown(replaced.before), "a r[e]d star");
  assert.equal(shown(replaced.after), "a r[3]d star[s]");
  assert.equal(shown(differences("red star", "redstar").before), "red[ ]star");
  assert.deepEqual(differences("same", "same").after, [{ text: "same", changed: false }]);
});

test("texts that are too long to compare are shown unmarked", () => {
  const after = "x".repeat(3000);
  assert.deepEqual(differences("y".repeat(3000), after).after, [{ text: after, changed: false }]);
});

test("every item is sent once before any is sent again, in an order that the seed decides", () => {
  const ids = ["a", "b", "c", "d", "e"];
  const sent = order(ids, 12, 3);
  assert.equal(sent.length, 12);
  assert.deepEqual(sent.slice(0, 5).toSorted(), ids);
  assert.deepEqual(sent.slice(5, 10).toSorted(), ids);
  assert.notDeepEqual(sent.slice(0, 5), sent.slice(5, 10));
  assert.deepEqual(order(ids, 12, 3), sent);
  assert.notDeepEqual(order(ids, 5, 4), order(ids, 5, 3));
  assert.deepEqual(order([], 5, 3), []);
});

test("recall moves over the batches that make up the window", () => {
  const batches = [
    [1, null],
    [null, null],
    [1, 1],
    [1, 2],
  ];
  assert.deepEqual(movingRecall(batches, 1, 4), [0.5, 0.25, 0.5, 0.75]);
  assert.deepEqual(movingRecall(batches, 2, 2), [0.5, 0, 1, 1]);
});

const batch = (source: (number | null)[], adapted: (number | null)[]) => ({ source, adapted });
const many = (count: number, rank: number | null) => new Array<number | null>(count).fill(rank);

test("the verdict is about the second half, with both figures", () => {
  const said = verdict(
    [
      batch(many(100, 1), many(100, null)),
      batch([...many(30, 1), ...many(70, null)], [...many(60, 1), ...many(40, 4)]),
    ],
    1,
  );
  assert.equal(said?.outcome, "better");
  assert.equal(
    said?.sentence,
    "Over the last 100 queries: source 30.0 %, adapted 60.0 % (recall@1), 30.0 points more.",
  );
});

test("a gain that could be chance is not claimed, and harm is said", () => {
  const unclear = verdict([batch([1, 1, null, null], [1, 1, 1, null])], 1);
  assert.equal(unclear?.outcome, "unclear");
  assert.match(unclear?.sentence ?? "", /source 50\.0 %, adapted 75\.0 % \(recall@1\), no clear difference/);
  assert.match(verdict([batch(many(50, 1), many(50, 2))], 1)?.sentence ?? "", /100\.0 points less/);
  assert.match(verdict([batch(many(50, 1), many(50, 2))], 5)?.sentence ?? "", /no difference/);
  assert.equal(verdict([], 1), null);
});

test("a busy server is asked again when it says, another failure ends the run", () => {
  assert.equal(pauseAfter(new ApiError(429, "queue_full", "full", {}, 3), 0), 3);
  assert.equal(pauseAfter(new ApiError(503, "not_ready", "not ready"), 2), 2);
  assert.equal(pauseAfter(new ApiError(503, "not_ready", "not ready", {}, 1), 5), 16);
  assert.equal(pauseAfter(new ApiError(429, "rate_limited", "slow", {}, 3600), 0), 60);
  assert.equal(pauseAfter(new ApiError(503, "not_ready", "not ready"), 6), null);
  assert.equal(pauseAfter(new ApiError(422, "unknown_corruption", "no"), 0), null);
  assert.equal(pauseAfter(new TypeError("x"), 0), null);
});

const PLAN: Plan = {
  gallery: "demo",
  stream: "s",
  kind: "image",
  corruption: { name: "fog", severity: 5 },
  queries: 5,
  batch: 2,
  seed: 1,
};

/** A server that finds every picture at rank 2 with the source model and at rank 1 adapted. */
function fakeServer(failures: ApiError[] = []) {
  const seen: { path: string; body: Record<string, unknown> }[] = [];
  const waits: number[] = [];
  const asks: Asks = {
    clean: async (id) => ({ image: `data:${id}` }),
    post: async <T>(path: string, json: unknown) => {
      const body = json as { queries: { image: string }[]; adapt?: string };
      seen.push({ path, body });
      if (path === "/corruptions") return { queries: body.queries.map(({ image }) => ({ image: `${image}!` })) } as T;
      const failure = failures.shift();
      if (failure) throw failure;
      const results = body.queries.map(({ image }) => {
        const hit = { id: image.slice(5, -1), score: 1, payload: {} };
        return { hits: body.adapt === "off" ? [{ ...hit, id: "?" }, hit] : [hit] };
      });
      return { results, adaptation: { status: "applied", reason: "", state_version: 1 } } as unknown as T &
        RetrieveAnswer;
    },
    waiting: () => undefined,
    sleep: async (milliseconds) => void waits.push(milliseconds),
  };
  return { asks, seen, waits };
}

async function all(asks: Asks, signal = new AbortController().signal): Promise<Batch[]> {
  const batches: Batch[] = [];
  for await (const one of send(PLAN, ["a", "b", "c"], asks, signal)) batches.push(one);
  return batches;
}

test("a run corrupts, asks both with the same queries, and stops at its number", async () => {
  const { asks, seen } = fakeServer();
  const batches = await all(asks);
  assert.deepEqual(
    batches.map((one) => one.ids.length),
    [2, 2, 1],
  );
  assert.deepEqual(
    batches.flatMap((one) => one.source),
    many(5, 2),
  );
  assert.deepEqual(
    batches.flatMap((one) => one.adapted),
    many(5, 1),
  );
  const [corrupted, off, sync] = seen;
  assert.deepEqual([corrupted?.path, corrupted?.body.corruption, corrupted?.body.severity], ["/corruptions", "fog", 5]);
  assert.deepEqual([off?.body.adapt, off?.body.stream, off?.body.target], ["off", undefined, "text"]);
  assert.deepEqual([sync?.body.adapt, sync?.body.stream, sync?.body.target], ["sync", "s", "text"]);
  assert.deepEqual(off?.body.queries, sync?.body.queries);
  assert.notEqual(seen[0]?.body.seed, seen[3]?.body.seed);
});

test("a run waits out a busy server and ends with what cannot be waited out", async () => {
  const busy = fakeServer([new ApiError(429, "queue_full", "full", {}, 2)]);
  assert.equal((await all(busy.asks)).length, 3);
  assert.deepEqual(busy.waits, [2000]);
  await assert.rejects(all(fakeServer([new ApiError(422, "empty_target", "no texts")]).asks), /no texts/);
});

test("a run that is stopped is not tried again", async () => {
  const controller = new AbortController();
  controller.abort();
  const { asks, waits } = fakeServer([new ApiError(503, "not_ready", "not ready")]);
  await assert.rejects(all(asks, controller.signal), /not ready/);
  assert.deepEqual(waits, []);
});

test("work for many is done a few at a time and answered in order", async () => {
  let running = 0;
  let most = 0;
  const answers = await everyOne([1, 2, 3, 4, 5], 2, async (value) => {
    most = Math.max(most, ++running);
    await Promise.resolve();
    running--;
    return value * 10;
  });
  assert.deepEqual(answers, [10, 20, 30, 40, 50]);
  assert.equal(most, 2);
});

test("figures find the batch of the run that they are of", () => {
  const recent: History = {
    at: [1, 2, 3],
    version: [5, 6, 7],
    status: ["applied", "applied", "skipped"],
    modality_gap: [0.5, 0.4, null],
    uniformity: [1, 2, 3],
  };
  const rows = figuresOf(recent, 7, 5);
  assert.deepEqual([...rows.keys()], [0, 1]);
  assert.deepEqual(rows.get(0), { modality_gap: 0.4, modality_gap_target: null, uniformity: 2, entropy_nats: null });
  assert.equal(figuresOf(undefined, 3, 0).size, 0);
});

const card = (presets: Record<string, Record<string, number>>) => ({
  summary: "",
  settings: { shifted_learning_rate: {} },
  presets,
});
const models = {
  methods: { source: card({ paper: {} }), tcr: card({ paper: {}, attune: { learn_from_shift: 2.5 } }) },
} as unknown as Models;

test("methods are offered with their presets", () => {
  const choices = methodChoices(models);
  assert.deepEqual(
    choices.map(({ value }) => value),
    ["source", "tcr", "tcr:attune", QUICK],
  );
});

test("what happened to a query is said in words, with the reason", () => {
  const adaptation = { method: "tcr", mode: "sync", direction: "text->image", state_version: 1, batch_size: 1 };
  assert.match(
    statusOf({ ...adaptation, status: "skipped", reason: "the batch looks clean" }, "query").text,
    /did not learn from this query: the batch looks clean\.$/,
  );
  assert.match(statusOf({ ...adaptation, status: "undone", reason: "" }, "query").text, /dropped again\.$/);
});
