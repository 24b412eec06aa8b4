// Bundles src/ into built/: index.html and assets whose names hold a hash of their content.
//
//   node build.mjs [--out FOLDER] [--watch]
import { createHash } from "node:crypto";
import { mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { basename, dirname, join, relative } from "node:path";
import { fileURLToPath } from "node:url";
import esbuild from "esbuild";

const here = dirname(fileURLToPath(import.meta.url));
const argument = process.argv.indexOf("--out");
const out = argument > 0 ? process.argv[argument + 1] : join(here, "built");
const PLACE = "/console/assets/";
const VENDORED = ["preact", "@preact/signals", "@preact/signals-core", "uplot"];

const common = {
  absWorkingDir: here,
  bundle: true,
  minify: true,
  format: "esm",
  target: ["es2022"],
  outdir: out,
  entryNames: "[name]-[hash]",
  chunkNames: "[name]-[hash]",
  assetNames: "[name]-[hash]",
  legalComments: "none",
  metafile: true,
  logLevel: "warning",
};

/** From an entry's name to the file that was written for it. */
function written(result, entry, suffix) {
  const found = Object.entries(result.metafile.outputs).find(([name, output]) =>
    suffix === ".css" ? name.endsWith(".css") : output.entryPoint === entry && name.endsWith(suffix),
  );
  return basename(found[0]);
}

function licences() {
  const parts = VENDORED.map((name) => {
    const folder = join(here, "node_modules", name);
    const { version } = JSON.parse(readFileSync(join(folder, "package.json"), "utf8"));
    return `${name} ${version}\n\n${readFileSync(join(folder, "LICENSE"), "utf8").trim()}\n`;
  });
  return `The console contains these libraries.\n\n${parts.join(`\n${"-".repeat(80)}\n\n`)}`;
}

/** SHA-256 over all that the build is made from, so that a test can tell whether it is out of date. */
function sources() {
  const files = readdirSync(join(here, "src"), { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name));
  files.push(join(here, "build.mjs"), join(here, "package-lock.json"));
  const named = files.map((path) => [relative(here, path).replaceAll("\\", "/"), path]);
  named.sort(([one], [other]) => (one < other ? -1 : 1));
  const digest = createHash("sha256");
  for (const [name, path] of named) {
    digest.update(`${name}\n${createHash("sha256").update(readFileSync(path)).digest("hex")}\n`);
  }
  return digest.digest("hex");
}

async function build() {
  rmSync(out, { recursive: true, force: true });
  mkdirSync(out, { recursive: true });
  const recorder = await esbuild.build({ ...common, entryPoints: ["src/recorder.ts"] });
  const icon = await esbuild.build({ ...common, entryPoints: ["src/icon.svg"], loader: { ".svg": "copy" } });
  const page = await esbuild.build({
    ...common,
    entryPoints: ["src/main.tsx"],
    jsx: "automatic",
    jsxImportSource: "preact",
    define: { RECORDER_URL: JSON.stringify(PLACE + written(recorder, "src/recorder.ts", ".js")) },
  });
  const html = readFileSync(join(here, "src/index.html"), "utf8")
    .replace("{{script}}", PLACE + written(page, "src/main.tsx", ".js"))
    .replace("{{style}}", PLACE + written(page, "src/main.tsx", ".css"))
    .replace("{{icon}}", PLACE + written(icon, "src/icon.svg", ".svg"));
  writeFileSync(join(out, "index.html"), html);
  writeFileSync(join(out, "licences.txt"), licences());
  writeFileSync(join(out, "sources.sha256"), `${sources()}\n`);
  const bytes = Object.values(page.metafile.outputs).reduce((sum, output) => sum + output.bytes, 0);
  console.log(`${relative(process.cwd(), out) || out}: ${(bytes / 1024).toFixed(0)} KiB of script and style`);
}

await build();
