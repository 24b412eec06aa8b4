import assert from "node:assert/strict";
import { test } from "node:test";
import { corrupted, type Post } from "../src/lib/corruptions.ts";
import { chosenMethod, learnedBatches, methodOf, OWN, tracksOf, type MethodChoice } from "../src/lib/methods.ts";
import { fetchedOnce } from "../src/lib/patience.ts";
import { Runner, type Planned } from "../src/lib/runner.ts";
import { compared, difference, freshName, laterHalf, learnedFrom, slug, takenBack } from "../src/lib/runs.ts";
import type { Json, StreamCard } from "../src/lib/types.ts";

const right = (count: number, source: boolean, adapted: boolean) => new Array(count).fill({ source, adapted });

test("a difference counts from more than two standard errors of what only one side got right", () => {
  // Of n that only one side got right, the standard error of won - lost is the root of n: 5 > 2 * 2.24 is clear.
  assert.equal(compared([...right(5, false, true), ...right(9, true, true)])?.outcome, "better");
  assert.equal(compared([...right(4, false, true), ...right(9, true, true)])?.outcome, "unclear");
  assert.equal(compared(right(5, true, false))?.outcome, "worse");
  assert.equal(compared(right(5, true, true))?.outcome, "same");
  assert.equal(compared([]), null);
});

test("shares are of all queries, and the difference is told in points", () => {
  const made = compared([...right(30, true, true), ...right(30, false, true), ...right(40, false, false)])!;
  assert.deepEqual(made, { queries: 100, source: 0.3, adapted: 0.6, outcome: "better" });
  assert.equal(difference(made, "queries"), "30.0 points more");
  assert.match(difference({ ...made, outcome: "worse" }, "clips"), /points less: adaptation did harm/);
  assert.match(difference({ ...made, outcome: "unclear" }, "clips"), /so few clips/);
});

test("the later half is what counts, the larger one of an odd number", () => {
  assert.deepEqual(laterHalf([1, 2, 3, 4, 5]), [3, 4, 5]);
  assert.deepEqual(laterHalf([]), []);
});

test("batches that taught nothing are counted, with the last reason", () => {
  const batch = (status: string, reason = "") => ({ status, reason });
  assert.equal(learnedFrom([]), "");
  assert.equal(learnedFrom([batch("applied"), batch("applying")]), "Learned from 2 of 2 batches.");
  assert.equal(
    learnedFrom([batch("skipped", "clean"), batch("undone", "harm"), batch("applied")]),
    "Learned from 1 of 3 batches; last skipped: harm.",
  );
});

test("a batch that was undone is marked where it ended", () => {
  assert.deepEqual(takenBack([{ status: "applied" }, { status: "undone" }], [16, 32]), [
    { at: 32, label: "taken back", colour: "bad" },
  ]);
});

test("a stream is named after what is done to its queries, and is new", () => {
  const base = slug({ name: "defocus_blur", severity: 5 });
  assert.equal(freshName(base, new Set()), "defocus-blur-5");
  assert.equal(freshName(base, new Set(["defocus-blur-5", "defocus-blur-5-2"])), "defocus-blur-5-3");
});

// Methods ------------------------------------------------------------------------------------------------------------

const CHOICES: MethodChoice[] = [
  { value: "tcr", label: "tcr", method: "tcr", settings: {} },
  { value: "quick", label: "quick", method: "tcr", settings: { preset: "attune", rate: 0.003 } },
];

test("a stream has one of the methods that are offered, whatever the order of its settings, or its own", () => {
  const chosen = (settings: Record<string, Json>) => chosenMethod({ method: "tcr", settings }, CHOICES, "usual");
  assert.deepEqual(
    [chosen({}), chosen({ rate: 0.003, preset: "attune" }), chosen({ steps: 2 })],
    ["tcr", "quick", OWN],
  );
  assert.equal(chosenMethod(null, CHOICES, "usual"), "usual");
});

test("each task has a method and tracks of its own", () => {
  const tracks = [
    { batches: 2, direction: "image->text" },
    { batches: 3, direction: "text->image" },
    { batches: 5, direction: "audio+video->label" },
  ];
  const card = { method: "tcr", settings: {}, classify: null, tracks } as unknown as StreamCard;
  assert.deepEqual([learnedBatches(card, "retrieve"), learnedBatches(card, "classify")], [5, 5]);
  assert.deepEqual(
    tracksOf(card, "classify").map(({ direction }) => direction),
    ["audio+video->label"],
  );
  assert.equal(learnedBatches(undefined, "retrieve"), 0);
  assert.equal(methodOf(card, "retrieve")?.method, "tcr");
  assert.deepEqual([methodOf(card, "classify"), methodOf(undefined, "retrieve")], [null, null]);
});

// Corruptions --------------------------------------------------------------------------------------------------------

test("of each query only the parts that a corruption is meant for go to the server", async () => {
  const bodies: Json[] = [];
  const post: Post = async <T>(_: string, body: Json) => {
    bodies.push(body);
    const { queries } = body as { queries: { audio: string }[] };
    return { queries: queries.map(({ audio }) => ({ audio: `${audio}, in the rain` })) } as T;
  };
  const how = { audio: { name: "rain", severity: 5 }, image: null };
  const clean = [{ audio: "a", image: "A" }, { image: "B" }, { audio: "c" }];
  const made = await corrupted<"audio" | "image">(clean, how, 7, post, new AbortController().signal);
  assert.deepEqual(made, [{ audio: "a, in the rain", image: "A" }, { image: "B" }, { audio: "c, in the rain" }]);
  assert.deepEqual(bodies, [{ corruption: "rain", severity: 5, seed: 7, queries: [{ audio: "a" }, { audio: "c" }] }]);
  assert.deepEqual(clean[0], { audio: "a", image: "A" });
});

// The runner ---------------------------------------------------------------------------------------------------------

const PLAN: Planned = { stream: "fog-5", queries: 4, batch: 2, seed: 1 };
const runner = () => new Runner<Planned, number>({ queries: 4, batchSize: 2, method: "tcr" });

async function* counted(...batches: (number | Error)[]): AsyncGenerator<number> {
  for (const batch of batches) {
    if (batch instanceof Error) throw batch;
    yield batch;
  }
}

test("a run keeps its batches as they come, and its stream's name is not offered again", async () => {
  const one = runner();
  assert.equal(one.nameOf("fog-5"), "fog-5");
  await one.start(
    PLAN,
    "tcr",
    async () => counted(1, 2, 3),
    (before) => before * 10,
  );
  // By the end two batches came after the first, one after the second.
  assert.deepEqual([one.run.value?.phase, one.run.value?.batches], ["done", [100, 20, 3]]);
  assert.equal(one.nameOf("fog-5"), "fog-5-2");
});

test("a run that fails says why and keeps what it has", async () => {
  const one = runner();
  await one.start(PLAN, "tcr", async () => counted(1, new Error("no such gallery")));
  const { phase, batches, trouble } = one.run.value!;
  assert.deepEqual({ phase, batches, trouble }, { phase: "failed", batches: [1], trouble: "no such gallery" });
});

test("a run that cannot be started leaves the one before on the page", async () => {
  const one = runner();
  await one.start(PLAN, "tcr", async () => {
    throw new Error("no pairs");
  });
  assert.deepEqual([one.run.value, one.trouble.value, one.starting.value], [null, "no pairs", false]);
  await one.start(PLAN, "tcr", async () => null);
  assert.deepEqual([one.run.value, one.trouble.value], [null, ""]);
});

test("a run that is stopped takes no more batches, and that is no failure", async () => {
  const one = runner();
  await one.start(PLAN, "tcr", async (signal) =>
    (async function* () {
      yield 1;
      one.stop();
      signal.throwIfAborted();
    })(),
  );
  assert.deepEqual([one.run.value?.phase, one.run.value?.batches, one.run.value?.trouble], ["stopped", [1], ""]);
});

test("what came once is not asked for again, what failed is", async () => {
  const asked: string[] = [];
  const load = fetchedOnce(async (path: string) => {
    asked.push(path);
    if (asked.length === 1) throw new Error("busy");
    return path.toUpperCase();
  });
  await assert.rejects(load("a"), /busy/);
  assert.equal(await load("a"), "A");
  assert.equal(await load("a"), "A");
  assert.deepEqual(asked, ["a", "a"]);
});
