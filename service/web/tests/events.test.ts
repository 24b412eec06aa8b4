import assert from "node:assert/strict";
import { test } from "node:test";
import { EventParser } from "../src/lib/parser.ts";

test("an event that arrives in pieces is put together", () => {
  const parser = new EventParser();
  assert.deepEqual(parser.feed("retry: 2000\n\nevent: ser"), []);
  assert.deepEqual(parser.feed('ver\ndata: {"a":'), []);
  assert.deepEqual(parser.feed("1}\n\n"), [{ event: "server", data: '{"a":1}' }]);
});

test("comments are passed over and lines of data joined", () => {
  const parser = new EventParser();
  assert.deepEqual(parser.feed(": beat\n\nid: 7\r\ndata: a\r\ndata: b\r\n\r\n"), [{ event: "message", data: "a\nb" }]);
});
