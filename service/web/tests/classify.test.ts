import assert from "node:assert/strict";
import { test } from "node:test";
import { ApiError } from "../src/lib/api.ts";
import { statusOf } from "../src/lib/learning.ts";
import { patiently, pause } from "../src/lib/patience.ts";
import type { ClassifyAnswer, Json, Models } from "../src/lib/types.ts";
import { entropies, movingAccuracy, score, verdict, type Entry } from "../src/views/classify/course.ts";
import { whyNever, whyNot } from "../src/views/classify/devices.ts";
import { labelsTrouble, parseLabels, rowsOf } from "../src/views/classify/labels.ts";
import { methodChoices, QUICK } from "../src/views/classify/methods.ts";
import { send, type Asks, type Batch, type Content, type Plan } from "../src/views/classify/send.ts";
import { bytesOf, heardSeconds, LastSamples, peaks, wav } from "../src/views/classify/sound.ts";
import { completion, lacked, novelty } from "../src/views/classify/words.ts";

// Sound --------------------------------------------------------------------------------------------------------------

test("samples become a WAV file of one channel and 16 bits", async () => {
  const view = new DataView(await wav(new Float32Array([0, 1, -1, 2]), 48_000).arrayBuffer());
  const text = (place: number, length: number) => String.fromCharCode(...new Uint8Array(view.buffer, place, length));
  assert.deepEqual([text(0, 4), text(8, 8), text(36, 4)], ["RIFF", "WAVEfmt ", "data"]);
  assert.deepEqual([view.getUint32(4, true), view.getUint32(40, true), view.byteLength], [44, 8, 52]);
  assert.deepEqual(
    [view.getUint16(22, true), view.getUint32(24, true), view.getUint32(28, true), view.getUint16(34, true)],
    [1, 48_000, 96_000, 16],
  );
  assert.deepEqual(
    [44, 46, 48, 50].map((place) => view.getInt16(place, true)),
    [0, 32767, -32767, 32767],
  );
});

test("the last samples are kept in their order, however they come", () => {
  const kept = new LastSamples(4);
  kept.add(new Float32Array([1, 2, 3]));
  assert.deepEqual([kept.full, [...kept.samples()]], [false, [1, 2, 3]]);
  kept.add(new Float32Array([4, 5]));
  assert.deepEqual([kept.full, [...kept.samples()]], [true, [2, 3, 4, 5]]);
  kept.add(new Float32Array([6, 7, 8, 9, 10, 11]));
  assert.deepEqual([...kept.samples()], [8, 9, 10, 11]);
});

test("a wave is as high as the loudest of its parts", () => {
  assert.deepEqual(peaks(new Float32Array([0, -0.5, 0.25, 0, 1.5, 0]), 3), [0.5, 0.25, 1]);
  assert.deepEqual(peaks(new Float32Array([0.5]), 2), [0, 0.5]);
});

test("the seconds that are heard follow from the classifier's frames", () => {
  assert.equal(heardSeconds(128).toFixed(3), "1.295");
  assert.equal(heardSeconds(undefined), 10.24);
});

test("a data URI gives its bytes back", () => {
  assert.deepEqual([...bytesOf("data:audio/wav;base64,AQID")], [1, 2, 3]);
});

// Labels -------------------------------------------------------------------------------------------------------------

test("labels are written with commas or on lines, and each counts once", () => {
  assert.deepEqual(parseLabels(" a cat, a dog\n\na cat ,, a fish"), ["a cat", "a dog", "a fish"]);
});

test("labels that the server would refuse are told before they are sent", () => {
  assert.equal(labelsTrouble(["a", "b"], "a photo of {}", 10), "");
  assert.match(labelsTrouble(["a"], "{}", 10), /two labels/);
  assert.match(labelsTrouble(["a", "b", "c"], "{}", 2), /2 at most/);
  assert.match(labelsTrouble(["a", "b".repeat(257)], "{}", 10), /256/);
  for (const template of ["a photo", "{} and {}", "{x} {}"])
    assert.match(labelsTrouble(["a", "b"], template, 10), /once/);
});

test("rows have both models' likeliest labels, and the true one even where it is unlikely", () => {
  const of = (...pairs: [string, number][]) => pairs.map(([label, probability]) => ({ label, probability }));
  const source = of(["a", 0.7], ["b", 0.2], ["c", 0.06], ["d", 0.04]);
  const adapted = of(["b", 0.9], ["a", 0.05], ["c", 0.03], ["d", 0.02]);
  assert.deepEqual(
    rowsOf(source, adapted, "d", 3).map(({ label, true: right }) => [label, right]),
    [
      ["b", false],
      ["a", false],
      ["d", true],
    ],
  );
  assert.deepEqual(rowsOf(source, null, null, 2), [
    { label: "a", source: 0.7, adapted: null, true: false },
    { label: "b", source: 0.2, adapted: null, true: false },
  ]);
});

// What a sequence comes to -------------------------------------------------------------------------------------------

const said = (label: string, entropy = 1) => ({ label, entropy });
const entry = (source: boolean, adapted: boolean): Entry => ({
  truth: "a",
  source: said(source ? "a" : "b"),
  adapted: said(adapted ? "a" : "b", 3),
});
const many = (count: number, source: boolean, adapted: boolean) =>
  Array.from({ length: count }, () => entry(source, adapted));

test("accuracy counts what is known alone", () => {
  const entries: Entry[] = [
    entry(true, false),
    { truth: null, source: said("a"), adapted: said("a") },
    { truth: "a", source: null, adapted: said("a") },
  ];
  assert.deepEqual(
    [score(entries, "source"), score(entries, "adapted")],
    [
      { right: 1, of: 1 },
      { right: 1, of: 2 },
    ],
  );
});

test("moving accuracy looks back over its window, entropy over its part", () => {
  const entries = [...many(2, false, true), ...many(2, true, true)];
  assert.deepEqual(movingAccuracy(entries, "source", [2, 3, 4], 2), [0, 0.5, 1]);
  assert.deepEqual(entropies([...entries, { truth: null, source: null, adapted: null }], "adapted", [2, 4, 5]), [
    3,
    3,
    null,
  ]);
});

test("a verdict is of the second half, and claims nothing that could be chance", () => {
  assert.equal(verdict([]), null);
  const first = many(20, true, false);
  assert.deepEqual(verdict([...first, ...many(20, false, true)])?.outcome, "better");
  assert.deepEqual(verdict([...first, ...many(20, true, false)])?.outcome, "worse");
  assert.deepEqual(verdict([...first, ...many(20, true, true)])?.outcome, "same");
  const close = verdict([...first, ...many(17, true, true), ...many(3, false, true)]);
  assert.equal(close?.outcome, "unclear");
  assert.match(close!.sentence, /85\.0 %.*100\.0 %: no clear difference/);
  assert.doesNotMatch(verdict([...first, ...many(20, true, false)])!.sentence, /more/);
});

// Words --------------------------------------------------------------------------------------------------------------

test("what was missing and how it was made up for is told in words", () => {
  assert.deepEqual([lacked({ missing: ["audio"] }), lacked({ missing: [] })], [["sound"], []]);
  assert.equal(completion({ missing: [], completed_by: "" }), "");
  assert.equal(
    completion({ missing: ["audio"], completed_by: "model" }),
    "There was no sound: the model answered from the picture alone.",
  );
  assert.match(completion({ missing: ["video"], completed_by: "imputation" }), /no picture.*filled in from the sound/);
  assert.deepEqual([novelty(null), novelty(0.9)], ["", ""]);
  assert.match(novelty(0.98), /98 %/);
});

test("a status comes with the server's reason", () => {
  const adaptation = {
    method: "brimpr",
    mode: "async",
    direction: "audio+video->label",
    state_version: 1,
    reason: "1 of 64 gathered",
    batch_size: 1,
  };
  assert.deepEqual(statusOf({ ...adaptation, status: "queued" }, "sample"), {
    kind: "busy",
    label: "gathered",
    text: "Answered at once, learned from in the background: 1 of 64 gathered.",
  });
  assert.match(
    statusOf({ ...adaptation, status: "applied", reason: "" }, "sample").text,
    /learned from this sample and/,
  );
});

test("why a device cannot be had depends on what the browser said", () => {
  const why = (name: string) => whyNot(new DOMException("", name), "camera");
  assert.match(why("NotAllowedError"), /not allowed/);
  assert.match(why("NotFoundError"), /none is connected/);
  assert.match(why("NotReadableError"), /another program/);
  assert.equal(whyNot(new Error("odd"), "microphone"), "The microphone cannot be used: odd");
  assert.match(whyNever(false, false), /https/);
  assert.match(whyNever(true, false), /no camera/);
  assert.equal(whyNever(true, true), "");
});

// Methods ------------------------------------------------------------------------------------------------------------

const card = { summary: "", settings: { learning_rate: {} }, presets: {} };
const classifier = { methods: { source: card, brimpr: card } } as unknown as Models["classifier"];

test("the classifier's methods are offered, one of them also at a faster rate", () => {
  assert.deepEqual(
    methodChoices(classifier).map(({ value }) => value),
    ["source", "brimpr", QUICK],
  );
  assert.deepEqual(methodChoices(null), []);
});

// A run --------------------------------------------------------------------------------------------------------------

const PLAN: Plan = {
  stream: "s",
  corruption: { audio: { name: "rain", severity: 5 }, image: null },
  queries: 5,
  batch: 2,
  seed: 1,
};

function server(
  calls: { path: string; body: { [name: string]: Json } }[],
  fail: (path: string) => ApiError | null = () => null,
): Asks {
  return {
    clips: async (start, count) =>
      Array.from({ length: count }, (_, place) => ({ id: `clip-${start + place}`, label: "a", audio: "", image: "" })),
    content: async (clip) => ({ audio: `sound of ${clip.id}`, image: `picture of ${clip.id}` }),
    post: async <T>(path: string, body: Json) => {
      const failure = fail(path);
      if (failure) throw failure;
      const sent = body as { [name: string]: Json };
      calls.push({ path, body: sent });
      if (path === "/corruptions")
        return {
          queries: (sent.queries as { audio: string }[]).map(({ audio }) => ({ audio: `${audio}, in the rain` })),
        } as T;
      const results = (sent.samples as Content[]).map(() => ({
        labels: [{ label: sent.adapt === "off" ? "b" : "a", probability: 1 }],
        entropy_nats: 0.5,
        missing: [],
        completed_by: "",
      }));
      return { results, adaptation: { status: "applied", reason: "" } as ClassifyAnswer["adaptation"] } as T;
    },
    waiting: () => undefined,
  };
}

async function all(plan: Plan, asks: Asks, signal = new AbortController().signal): Promise<Batch[]> {
  const batches: Batch[] = [];
  for await (const batch of send(plan, asks, signal)) batches.push(batch);
  return batches;
}

test("a run asks both models about the same corrupted clips, all of them once", async () => {
  const calls: Parameters<typeof server>[0] = [];
  const batches = await all(PLAN, server(calls));
  assert.deepEqual(
    batches.map(({ clips }) => clips.map(({ id }) => id)),
    [["clip-0", "clip-1"], ["clip-2", "clip-3"], ["clip-4"]],
  );
  const asked = calls.filter(({ path }) => path === "/classify");
  assert.deepEqual(
    asked.map(({ body }) => body.adapt),
    ["off", "sync", "off", "sync", "off", "sync"],
  );
  assert.deepEqual(asked[0]!.body.samples, asked[1]!.body.samples);
  assert.deepEqual((asked[0]!.body.samples as Content[])[0], {
    audio: "sound of clip-0, in the rain",
    image: "picture of clip-0",
  });
  assert.deepEqual(
    calls.filter(({ path }) => path === "/corruptions").map(({ body }) => body.seed),
    [1, 3, 5],
  );
  assert.deepEqual(batches[0]!.entries[0], {
    truth: "a",
    source: { label: "b", entropy: 0.5 },
    adapted: { label: "a", entropy: 0.5 },
  });
});

test("a run ends with what cannot be waited out", async () => {
  await assert.rejects(
    all(
      PLAN,
      server([], (path) => (path === "/classify" ? new ApiError(422, "bad_audio", "no sound") : null)),
    ),
    /no sound/,
  );
});

test("what a busy server refuses is tried again, and stopping ends the wait", async () => {
  const waits: string[] = [];
  const busy = new ApiError(429, "queue_full", "the queue is full", {}, 2);
  const slept: number[] = [];
  let tries = 0;
  const work = async () => {
    if (++tries < 3) throw busy;
    return "done";
  };
  const sleep = async (milliseconds: number) => void slept.push(milliseconds);
  assert.equal(await patiently(work, new AbortController().signal, (why) => waits.push(why), sleep), "done");
  assert.deepEqual(
    [slept, waits],
    [
      [2000, 2000],
      ["the queue is full; trying again", "", "the queue is full; trying again", ""],
    ],
  );

  const controller = new AbortController();
  const stopped = assert.rejects(pause(60_000, controller.signal), { name: "AbortError" });
  controller.abort();
  await stopped;
  await assert.rejects(pause(60_000, controller.signal), { name: "AbortError" });
});
