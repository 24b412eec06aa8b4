import assert from "node:assert/strict";
import { test } from "node:test";
import { ApiError } from "../src/lib/api.ts";
import type { Json } from "../src/lib/types.ts";
import { readList } from "../src/views/galleries/lists.ts";
import { nameProblem, uniqueId } from "../src/views/galleries/names.ts";
import { arrange, type Entry, isPicture, plan } from "../src/views/galleries/plan.ts";
import { type Means, pauseSeconds, refusedItems, type Report, upload } from "../src/views/galleries/upload.ts";
import { payloadLine } from "../src/views/galleries/words.ts";

const LIMITS = { text_characters: 100 };
const picture = (path: string) => ({ path, blob: new Blob(["x"]), problem: "" });

test("a name that the server would refuse is told why", () => {
  assert.deepEqual(
    ["", "products", "a.b_c-1", "x."].map((name) => nameProblem(name, [])),
    ["", "", "", ""],
  );
  for (const name of ["Products", "two words", "-a", "a..b", "ä", "x".repeat(65), "demo"])
    assert.notEqual(nameProblem(name, ["demo"]), "", name);
});

test("ids that are taken get a number before the ending", () => {
  assert.equal(uniqueId("cat.png", new Set(["cat.png", "cat-2.png"])), "cat-3.png");
  assert.equal(uniqueId("cat", new Set(["cat"])), "cat-2");
});

test("captions of a table go to the pictures of their name, with or without a head line", () => {
  const files = [picture("a.png"), picture("deep/b.png")];
  for (const [name, text] of [
    ["captions.tsv", "file\tcaption\na.png\ta cat\nb.png\ta dog\n"],
    ["c.csv", 'a.png,a cat\r\nimages/b.png,"a dog"\r\n'],
  ] as const) {
    const made = arrange(files, [readList(name, text, [])], LIMITS);
    assert.deepEqual(
      made.entries.map(({ id, text }) => [id, text]),
      [
        ["a.png", "a cat"],
        ["deep/b.png", "a dog"],
      ],
      name,
    );
    assert.deepEqual(made.problems, []);
  }
});

test("quotes of comma-separated values hold commas, quotes and line ends", () => {
  const { lines } = readList("c.csv", 'a.png,"red, ""round""\nand big"\nb.png,plain', []);
  assert.deepEqual(lines, [
    { number: 1, file: "a.png", text: 'red, "round"\nand big' },
    { number: 3, file: "b.png", text: "plain" },
  ]);
});

test("a text file named as a picture is its caption", () => {
  assert.deepEqual(readList("cat.txt", "a grey cat\n", ["cat.png"]).lines, [
    { number: 1, file: "cat.png", text: "a grey cat" },
  ]);
  assert.equal(readList("notes.txt", "nothing of use\n", ["cat.png"]).problems.length, 1);
});

test("JSON lines are items of their own, or say something of a picture", () => {
  const list = readList(
    "items.jsonl",
    '{"id": "t", "text": "alone", "payload": {"n": 1}}\n{"image": "a.png", "id": "first", "text": "a cat"}\n{"id": "b.png", "text": "a dog"}\n',
    [],
  );
  const { entries, problems } = arrange([picture("a.png"), picture("b.png")], [list], LIMITS);
  assert.deepEqual(
    entries.map(({ id, text, picture: blob }) => [id, text, blob !== null]),
    [
      ["first", "a cat", true],
      ["b.png", "a dog", true],
      ["t", "alone", false],
    ],
  );
  assert.deepEqual(entries[2]?.payload, { n: 1 });
  assert.deepEqual(problems, []);
});

test("lines that cannot be used are named, and the others used", () => {
  const { lines, problems } = readList(
    "x.jsonl",
    '{"id": "a", "text": "x"}\nnonsense\n[1]\n{"text": "no id"}\n{"id": "a"}\n{"id": 5, "text": "x"}\n{"id": "a", "txt": "x"}\n',
    [],
  );
  assert.equal(lines.length, 1);
  assert.deepEqual(
    problems.map((problem) => /line (\d)/.exec(problem)?.[1]),
    ["2", "3", "4", "5", "6", "7"],
  );
  assert.match(arrange([], [readList("c.tsv", "gone.png\tx\n", [])], LIMITS).problems[0] ?? "", /no picture gone\.png/);
});

test("files of one name and texts of one id all get in, under ids of their own", () => {
  const { entries } = arrange(
    [picture("a.png"), picture("a.png")],
    [readList("x.jsonl", '{"id": "t", "text": "1"}\n{"id": "t", "text": "2"}\n', [])],
    LIMITS,
  );
  assert.deepEqual(
    entries.map(({ id }) => id),
    ["a.png", "a-2.png", "t", "t-2"],
  );
});

test("what is no picture by its first bytes is left out by name", async () => {
  assert.ok(isPicture(new Uint8Array([0xff, 0xd8, 0xff, 0xe0])));
  const made = await plan(
    [
      { path: "notes.png", blob: new Blob(["hello, this is text"]) },
      { path: "none.png", blob: new Blob([]) },
    ],
    LIMITS,
  );
  assert.deepEqual(
    made.entries.map(({ problem }) => problem),
    ["not a picture", "the file is empty"],
  );
});

test("a text longer than the server takes is a problem of its item", () => {
  const { entries } = arrange(
    [],
    [readList("x.jsonl", JSON.stringify({ id: "a", text: "x".repeat(101) }), [])],
    LIMITS,
  );
  assert.match(entries[0]?.problem ?? "", /101 characters/);
});

test("the payload's line leaves out what the text says", () => {
  assert.equal(
    payloadLine({ text: "a cat", payload: { caption: "a cat", colours: ["red", "blue"], size: { w: 1 } } }),
    'colours: red, blue · size: {"w":1}',
  );
});

const entriesOf = (...ids: string[]): Entry[] =>
  ids.map((id) => ({ id, text: id, payload: null, picture: null, source: id, problem: "" }));

/** A server that answers as told, and remembers what it was sent. */
function serverOf(answer: (ids: string[], request: number) => ApiError | null, stop = new AbortController()) {
  const requests: string[][] = [];
  const pauses: number[] = [];
  const means: Means = {
    prepare: async (entry) => {
      if (entry.id.startsWith("broken")) throw new Error("this is no picture that can be read");
      return { id: entry.id, text: entry.text };
    },
    send: async (items) => {
      const ids = items.map((item) => String(item.id));
      requests.push(ids);
      const failure = answer(ids, requests.length);
      if (failure) throw failure;
      return { added: ids.length, replaced: 0 };
    },
    pause: async (seconds) => {
      pauses.push(seconds);
    },
    stop: stop.signal,
    changed: () => undefined,
  };
  return { means, requests, pauses };
}

const summary = ({ added, failed, left }: Report) => ({
  added,
  failed: failed.map(({ entry, reason }) => [entry.id, reason]),
  left: left.map(({ id }) => id),
});
const ROOMY = { items: 4, body_bytes: 10_000 };

function refusing(bad: string) {
  return (ids: string[]): ApiError | null => {
    const place = ids.indexOf(bad);
    const field = `items[${place}].image`;
    return place < 0 ? null : new ApiError(422, "bad_image", `${field}: not a readable picture`, { field });
  };
}

test("an item that the server names is taken out, and its neighbours go in", async () => {
  const { means, requests } = serverOf(refusing("c"));
  assert.deepEqual(summary(await upload(entriesOf("a", "b", "c", "d", "e"), ROOMY, means)), {
    added: 4,
    failed: [["c", "not a readable picture"]],
    left: [],
  });
  assert.deepEqual(requests, [["a", "b", "c", "d"], ["a", "b", "d"], ["e"]]);
});

test("an item at fault that the server does not name is found by halving", async () => {
  const { means } = serverOf((ids) => (ids.includes("b") ? new ApiError(422, "bad", "an item is bad") : null));
  assert.deepEqual(summary(await upload(entriesOf("a", "b", "c", "d"), ROOMY, means)), {
    added: 3,
    failed: [["b", "an item is bad"]],
    left: [],
  });
});

test("several items named by one refusal go at once", () => {
  const errors: Json = [
    { field: "items[1].text", message: "blank" },
    { field: "items[2]", message: "nothing to find" },
  ];
  const found = refusedItems(new ApiError(422, "invalid_request", "items[1].text: blank (and 1 more)", { errors }));
  assert.deepEqual(
    [...found],
    [
      [1, "blank"],
      [2, "nothing to find"],
    ],
  );
});

test("a busy server is asked again after as long as it says", async () => {
  const { means, requests, pauses } = serverOf((_, request) =>
    request < 3 ? new ApiError(429, "queue_full", "full", {}, 7) : null,
  );
  assert.equal((await upload(entriesOf("a"), ROOMY, means)).added, 1);
  assert.deepEqual([requests.length, pauses], [3, [7, 7]]);
  assert.equal(pauseSeconds({ status: 422, retryAfterSeconds: null }, 1), null);
});

test("a refusal that all items share ends the upload, with the reason at each", async () => {
  const { means, requests } = serverOf(() => new ApiError(404, "unknown_gallery", "there is no gallery x"));
  const report = summary(await upload(entriesOf("a", "b", "c", "d", "e"), ROOMY, means));
  assert.equal(requests.length, 1);
  assert.deepEqual(report.failed.at(-1), ["e", "not sent: there is no gallery x"]);
  assert.equal(report.failed.length, 5);
});

test("a stop leaves the rest and keeps what is in", async () => {
  const stop = new AbortController();
  const { means } = serverOf(() => {
    stop.abort();
    return null;
  }, stop);
  assert.deepEqual(summary(await upload(entriesOf("a", "b", "c", "d", "e", "f"), ROOMY, means)), {
    added: 4,
    failed: [],
    left: ["e", "f"],
  });
});

test("a stop while a busy server is waited for leaves what was not taken", async () => {
  const stop = new AbortController();
  const { means } = serverOf(() => {
    stop.abort();
    return new ApiError(503, "busy", "busy", {}, 1);
  }, stop);
  assert.deepEqual(summary(await upload(entriesOf("a", "b"), ROOMY, means)), {
    added: 0,
    failed: [],
    left: ["a", "b"],
  });
});

test("requests stay within the bytes that the server takes, and a picture that cannot be read costs itself alone", async () => {
  const { means, requests } = serverOf(() => null);
  const entries = [...entriesOf("broken", "a", "b"), { ...entriesOf("big")[0]!, text: "x".repeat(500) }];
  const report = await upload(entries, { items: 100, body_bytes: 94 }, means);
  assert.deepEqual(requests, [["a"], ["b"]]);
  assert.deepEqual(summary(report).failed, [
    ["broken", "this is no picture that can be read"],
    ["big", "it is larger than one request can be"],
  ]);
});
