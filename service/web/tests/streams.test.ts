import assert from "node:assert/strict";
import { test } from "node:test";
import type { GuardEvent, History, StreamCard, Track } from "../src/lib/types.ts";
import { conditionOf, needsAttention } from "../src/views/streams/condition.ts";
import { controlsOf, draftOf, settingsOf } from "../src/views/streams/form.ts";
import { joined, marksOf, NOTHING } from "../src/views/streams/history.ts";
import { comparison, filtered, kept, WORST_FIRST, type Row } from "../src/views/streams/order.ts";

const NOW = 10_000;

/** `count` batches, the last one a second ago; each figure is the number of its batch. */
function past(count: number, more: Partial<History> = {}): History {
  const numbers = Array.from({ length: count }, (_, place) => place + 1);
  return {
    at: numbers.map((number) => NOW - count + number - 1),
    batch: numbers,
    version: numbers,
    status: numbers.map(() => "applied"),
    modality_gap: numbers,
    modality_gap_target: numbers,
    uniformity: numbers,
    entropy_nats: numbers,
    shift: numbers.map(() => null),
    ...more,
  };
}

function trackWith(more: Partial<Track> = {}, guard: Partial<Track["guard"]> = {}): Track {
  return {
    gallery: "demo",
    direction: "text->image",
    version: 3,
    batches: 3,
    applied: 3,
    skipped: 0,
    undone: 0,
    shed: 0,
    gathered: 0,
    memory_size: 0,
    state_bytes: 0,
    last_reason: "",
    drift: null,
    losses: null,
    recent: past(3),
    guard: {
      policy: "rollback",
      batches: 3,
      finding: null,
      cooldown_batches: 0,
      good_version: null,
      figures: {},
      events: [],
      ...guard,
    },
    ...more,
  };
}

function card(name: string, tracks: Track[], more: Partial<StreamCard> = {}): StreamCard {
  return {
    name,
    pinned: false,
    method: "tcr",
    settings: {},
    classify: null,
    guard: {},
    calibrations: {},
    version: 3,
    batches: 3,
    created_at: 0,
    last_seen: NOW - 1,
    tracks,
    ...more,
  };
}

function event(action: string, finding: string, at: number): GuardEvent {
  return {
    time: at,
    stream: "s",
    track: "demo/text->image",
    batch: 3,
    finding,
    action,
    reason: "distance 0.2 from the source",
    figures: {},
  };
}

const stateOf = (...tracks: Track[]) => conditionOf(card("s", tracks), NOW);

test("a stream that rests after a rollback is guarded, and says when", () => {
  const track = trackWith({}, { cooldown_batches: 7, events: [event("rollback", "harm", NOW - 120)] });
  const condition = stateOf(track);
  assert.equal(condition.text, "guarded: rolled back 2 min ago");
  assert.match(condition.why, /adaptation did harm: distance 0\.2 from the source\. It rests for 7 more batches\.$/);
  assert.ok(needsAttention(condition));
});

test("a rollback of an hour ago whose rest is over is forgotten", () => {
  assert.equal(stateOf(trackWith({}, { events: [event("rollback", "harm", NOW - 3600)] })).name, "learning");
});

test("a new shift that the guard met by starting anew is no harm", () => {
  const condition = stateOf(trackWith({}, { events: [event("reset", "changed", NOW - 60)] }));
  assert.equal(condition.name, "shifted");
  assert.ok(!needsAttention(condition));
});

test("the last batch decides whether something was undone", () => {
  assert.equal(stateOf(trackWith({ recent: past(3, { status: ["applied", "applied", "undone"] }) })).name, "undone");
  assert.equal(stateOf(trackWith({ recent: past(3, { status: ["applied", "undone", "applied"] }) })).name, "learning");
});

test("batches that are skipped for a finding are told, and a warning that changes nothing is less", () => {
  assert.equal(
    stateOf(trackWith({}, { finding: "crowded", events: [event("skip", "crowded", NOW - 9)] })).name,
    "skipping",
  );
  assert.equal(stateOf(trackWith({}, { finding: "harm", events: [event("warn", "harm", NOW - 9)] })).name, "warned");
});

test("a shift from clean queries is told from 2.5 on", () => {
  assert.equal(stateOf(trackWith({ recent: past(3, { shift: [1, 3, 2.4] }) })).name, "learning");
  assert.equal(stateOf(trackWith({ recent: past(3, { shift: [1, 3, 2.6] }) })).text, "shifted: 2.6 × clean");
});

test("without trouble a stream learns, is healthy, idle, new, or does not adapt at all", () => {
  const old = trackWith({ recent: past(3, { at: [NOW - 202, NOW - 201, NOW - 200] }) });
  assert.equal(stateOf(trackWith()).name, "learning");
  assert.equal(stateOf(old).name, "healthy");
  assert.equal(conditionOf(card("s", [old], { last_seen: NOW - 301 }), NOW).name, "idle");
  assert.equal(conditionOf(card("s", []), NOW).name, "new");
  assert.equal(stateOf(trackWith({ batches: 0, applied: 0, recent: past(0) })).name, "new");
  assert.equal(conditionOf(card("s", [old], { method: "source" }), NOW).name, "fixed");
});

test("the worst track speaks for its stream", () => {
  const condition = stateOf(trackWith(), trackWith({ recent: past(1, { status: ["undone"] }) }));
  assert.deepEqual([condition.name, condition.track], ["undone", 1]);
});

function row(name: string, tracks: Track[], more: Partial<StreamCard> = {}): Row {
  const made = card(name, tracks, more);
  const condition = conditionOf(made, NOW);
  return { card: made, condition, track: made.tracks[condition.track] ?? null };
}

const names = (rows: Row[]) => rows.map(({ card: { name } }) => name);
const guardedAt = (at: number) => trackWith({}, { cooldown_batches: 1, events: [event("rollback", "harm", at)] });

test("the worst comes first, then what began last, then who was seen last, then the name", () => {
  const rows = [
    row("b", [trackWith()]),
    row("a", [trackWith()]),
    row("later", [trackWith()], { last_seen: NOW }),
    row("old-harm", [guardedAt(NOW - 500)]),
    row("harm", [guardedAt(NOW - 5)]),
    row("new", []),
  ];
  assert.deepEqual(names(rows.toSorted(comparison(WORST_FIRST))), ["harm", "old-harm", "later", "a", "b", "new"]);
});

test("what is not known comes last in either direction", () => {
  const rows = [
    row("none", []),
    row("low", [trackWith({ recent: past(1) })]),
    row("high", [trackWith({ recent: past(5) })]),
  ];
  assert.deepEqual(names(rows.toSorted(comparison({ column: "gap", down: true }))), ["high", "low", "none"]);
  assert.deepEqual(names(rows.toSorted(comparison({ column: "gap", down: false }))), ["low", "high", "none"]);
});

test("rows keep their places when one gets worse; newcomers go where they belong, leavers go", () => {
  const compare = comparison(WORST_FIRST);
  const sorted = [row("b", [guardedAt(NOW - 5)]), row("new-harm", [guardedAt(NOW - 50)]), row("a", [trackWith()])].sort(
    compare,
  );
  assert.deepEqual(names(sorted), ["b", "new-harm", "a"]);
  assert.deepEqual(names(kept(["a", "gone", "b"], sorted, compare)), ["new-harm", "a", "b"]);
});

test("names are found whatever their case, and trouble alone can be shown", () => {
  const rows = [row("Camera-1", [guardedAt(NOW)]), row("camera-2", [trackWith()]), row("shop", [trackWith()])];
  assert.deepEqual(names(filtered(rows, " camera ", false)), ["Camera-1", "camera-2"]);
  assert.deepEqual(names(filtered(rows, "", true)), ["Camera-1"]);
});

test("batches that came since are appended with their numbers, and the newest has its loss", () => {
  const before = past(5, { batch: [1, 2, 3, 4, 5], loss: [5, 4, 3, 2, 1] });
  const { batch: _, ...recent } = past(7, { at: [...before.at, NOW + 1, NOW + 2] });
  const { history, whole } = joined(before, trackWith({ recent, losses: { total: 0.5 } }));
  assert.ok(whole);
  assert.deepEqual(history.batch, [1, 2, 3, 4, 5, 6, 7]);
  assert.deepEqual(history.modality_gap, [1, 2, 3, 4, 5, 6, 7]);
  assert.deepEqual(history.loss, [5, 4, 3, 2, 1, null, 0.5]);
});

test("a gap between what is known and what is recent has to be asked for, and so has another past", () => {
  const recent = past(24, { at: Array.from({ length: 24 }, (_, place) => NOW + 100 + place) });
  assert.equal(joined(past(5), trackWith({ recent })).whole, false);
  assert.equal(joined(past(5), trackWith({ recent: past(0) })).whole, false);
  assert.equal(joined(past(5), trackWith({ recent: past(3, { at: [1, 2, 3] }) })).whole, false);
});

test("the past of a stream that had none is asked for after a restore; its first batch is not", () => {
  assert.equal(joined(NOTHING, trackWith({ recent: past(16) })).whole, false);
  assert.equal(joined(NOTHING, trackWith({ recent: past(1) })).whole, true);
});

test("a card that ends before the history may be a restored one: the server is asked, and nothing is lost meanwhile", () => {
  const before = past(5);
  assert.deepEqual(joined(before, trackWith({ recent: past(4, { at: before.at.slice(0, 4) }) })), {
    history: before,
    whole: false,
  });
});

test("undone batches, the first of each run of skipped ones and guard events are marked at their batches", () => {
  const history = past(6, { status: ["applied", "skipped", "skipped", "applied", "undone", "skipped"] });
  const marks = marksOf(history, [event("rollback", "harm", history.at[3]! - 0.2), event("warn", "harm", NOW + 100)]);
  assert.deepEqual(
    marks.map(({ at, colour }) => [at, colour]),
    [
      [2, "warn"],
      [5, "bad"],
      [6, "warn"],
      [4, "bad"],
    ],
  );
});

const METHOD = {
  summary: "",
  presets: { paper: {}, attune: { rate: 0.5 } },
  settings: {
    steps: { type: "integer", minimum: 1, maximum: 20, default: 3 },
    rate: { anyOf: [{ type: "number", exclusiveMinimum: 0 }, { type: "null" }], default: null },
    mode: { type: "string", enum: ["mul", "div"], default: "mul" },
    online: { type: "boolean", default: true },
  },
};

test("only what is set is sent, as the right kind of value", () => {
  const controls = controlsOf(METHOD, "");
  const { settings, wrong } = settingsOf(
    controls,
    { steps: "5", rate: "none", mode: "div", online: "false" },
    "attune",
  );
  assert.deepEqual(settings, { preset: "attune", steps: 5, rate: null, mode: "div", online: false });
  assert.deepEqual(wrong, {});
  assert.deepEqual(settingsOf(controls, { steps: " ", mode: "" }, "").settings, {});
});

test("what is out of bounds is told and not sent", () => {
  const controls = controlsOf(METHOD, "");
  for (const [draft, words] of [
    [{ steps: "21" }, "at most 20"],
    [{ steps: "1.5" }, "Whole"],
    [{ rate: "0" }, "above 0"],
    [{ rate: "x" }, "no number"],
  ] as const) {
    const { settings, wrong } = settingsOf(controls, draft, "");
    assert.deepEqual(settings, {});
    assert.match(Object.values(wrong)[0] ?? "", new RegExp(words));
  }
});

test("a preset changes what is usual, and settings go there and back", () => {
  assert.equal(controlsOf(METHOD, "attune").find(({ name }) => name === "rate")?.standard, 0.5);
  const set = { preset: "attune", steps: 5, rate: null, online: false };
  const { preset, draft } = draftOf(set);
  assert.deepEqual(settingsOf(controlsOf(METHOD, preset), draft, preset).settings, set);
});
