import assert from "node:assert/strict";
import { test } from "node:test";
import { part } from "../src/lib/api.ts";
import { figure, percent } from "../src/lib/format.ts";
import { lost, moves, recall } from "../src/lib/ranks.ts";
import { asCurl, asPython, pythonValue } from "../src/lib/snippets.ts";

const hits = (...ids: string[]) => ids.map((id) => ({ id }));

test("a hit tells how many places it has gained", () => {
  assert.deepEqual(
    moves(hits("b", "c", "a"), hits("a", "b")).map(({ rank, before, gained }) => [rank, before, gained]),
    [
      [1, 2, 1],
      [2, null, null],
      [3, 1, -2],
    ],
  );
});

test("hits that left are those of before that are no more", () => {
  assert.deepEqual(lost(hits("b"), hits("a", "b")), hits("a"));
});

test("recall counts the queries whose truth is among the first k", () => {
  assert.equal(recall([1, 2, null, 7], 1), 0.25);
  assert.equal(recall([1, 2, null, 7], 5), 0.5);
  assert.equal(recall([], 5), null);
});

test("figures have three significant digits", () => {
  assert.deepEqual(
    [0.01234, 4.567, 812.4, 0, null, Number.NaN].map((value) => figure(value)),
    ["0.0123", "4.57", "812", "0", "–", "–"],
  );
  assert.equal(percent(0.1234), "12.3 %");
});

test("a picture in a body is read from disk by the command, and goes through a pipe, which has room for it", () => {
  const call = {
    method: "POST",
    path: "/retrieve",
    body: { queries: [{ image: "data:image/png;base64,AAAA" }] },
    files: ["it's.png"],
  };
  assert.equal(
    asCurl(call, "http://h", null),
    `printf %s '{"queries":[{"image":"data:image/png;base64,'"$(base64 -w0 'it'\\''s.png')"'"}]}' | \\\n  curl -s -X POST 'http://h/retrieve' \\\n  -H 'Content-Type: application/json' \\\n  -d @-`,
  );
});

test("quotes in a query do not leave the shell's quotes", () => {
  const call = { method: "POST", path: "/retrieve", body: { queries: [{ text: "it's $(rm -rf ~) `x`" }] } };
  assert.match(asCurl(call, "http://h", "api"), /-H "Authorization: Bearer \$ATTUNE_API_KEY"/);
  assert.match(asCurl(call, "http://h", null), /'\{"queries":\[\{"text":"it'\\''s \$\(rm -rf ~\) `x`"\}\]\}'/);
});

test("a file's name does not leave the shell's quotes, and is no option", () => {
  const upload = (file: string) =>
    asCurl({ method: "POST", path: "/x", upload: { type: "a/b", file } }, "http://h", null)
      .split("\n")
      .at(-1);
  assert.equal(upload("a;touch b"), "  --data-binary @'a;touch b'");
  assert.equal(upload("$(id)'`.attune"), "  --data-binary @'$(id)'\\''`.attune'");
  assert.equal(upload("a\u001b[201~\u009b\nid\n"), "  --data-binary @'a_[201~__id_'");
  const picture = (file: string) =>
    asCurl({ method: "POST", path: "/x", body: "data:image/png;base64,AA==", files: [file] }, "http://h", null);
  assert.match(picture("--help"), /base64 -w0 \.\/--help\)/);
});

test("what cannot be seen is written out", () => {
  const text = "a\u202eb\u009b\u2028";
  assert.equal(pythonValue({ [text]: text }), '{"a\\u202eb\\u009b\\u2028": "a\\u202eb\\u009b\\u2028"}');
  assert.match(asCurl({ method: "POST", path: "/x", body: text }, "http://h", null), /-d '"a\\u202eb\\u009b\\u2028"'/);
});

test("Python has its own words for JSON values", () => {
  assert.equal(pythonValue({ a: [true, null, 1.5, "x"] }), '{"a": [True, None, 1.5, "x"]}');
  const call = { method: "POST", path: "/admin/streams/a/reset", python: 'client.reset_stream("a")' };
  assert.equal(
    asPython(call, "http://h", "admin"),
    'from attune import Client\n\nwith Client("http://h", admin_key="...") as client:\n    client.reset_stream("a")\n',
  );
});

test("a name is one part of a path, whatever it is", () => {
  const path = (name: string) => new URL(`http://h/galleries/${part(name)}/items`).pathname;
  assert.equal(path("a/b ?#"), "/galleries/a%2Fb%20%3F%23/items");
  for (const name of [".", "..", "%2e%2e", "../x"]) assert.equal(path(name).split("/").length, 4);
});
