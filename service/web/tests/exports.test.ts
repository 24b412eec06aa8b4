import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";

const read = (folder: string): Map<string, string> =>
  new Map(
    readdirSync(folder, { recursive: true, encoding: "utf8" })
      .filter((name) => /\.tsx?$/.test(name))
      .map((name) => [join(folder, name), readFileSync(join(folder, name), "utf8")]),
  );

test("what a module exports is used by another one, or by a test", () => {
  const modules = read("src");
  const all = [...modules, ...read("tests")];
  const unused = [...modules].flatMap(([path, text]) =>
    [...text.matchAll(/^export (?:async )?(?:function\*?|const|class|interface|type) (\w+)/gm)]
      .map(([, name]) => name!)
      .filter((name) => !all.some(([other, its]) => other !== path && new RegExp(`\\b${name}\\b`).test(its)))
      .map((name) => `${path}: ${name}`),
  );
  assert.ok(modules.size > 50);
  assert.deepEqual(unused, []);
});
