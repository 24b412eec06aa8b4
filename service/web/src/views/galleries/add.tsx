import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { Drop, pathOf } from "../../components/drop.tsx";
import { Progress } from "../../components/fields.tsx";
import { get, part } from "../../lib/api.ts";
import { count, figure } from "../../lib/format.ts";
import { link } from "../../lib/router.ts";
import { config, demoEncoder, messageOf, say } from "../../lib/state.ts";
import type { GalleryCard, ItemPage } from "../../lib/types.ts";
import { begin, type Job, job } from "./job.ts";
import { type Entry, type Plan, plan, problemsFirst } from "./plan.ts";
import { SingleDialog } from "./single.tsx";
import { type Report, settled } from "./upload.ts";
import { items as itemsInWords } from "./words.ts";

const FILES = "image/*,.tsv,.csv,.txt,.jsonl,.ndjson";
const SHOWN = 50;

/** Files in; what will come of them; how it went. */
export function AddItems({ card }: { card: GalleryCard }) {
  const [planned, setPlanned] = useState<Plan | null>(null);
  const [existing, setExisting] = useState<ReadonlySet<string> | null>(new Set());
  const [reading, setReading] = useState(false);
  const [single, setSingle] = useState(false);
  const current = job.value;
  const ours = current?.gallery === card.name ? current : null;
  const limits = config.value?.limits;
  const busy = current?.running ?? false;
  const off = card.status === "refused" || busy || reading || !limits;

  const take = async (files: File[]) => {
    if (!limits) return;
    setReading(true);
    try {
      const made = await plan(
        files.map((file) => ({ path: pathOf(file), blob: file })),
        limits,
      );
      setExisting(await idsThere(card, made.entries).catch(() => null));
      setPlanned(made);
    } catch (error) {
      say(messageOf(error), "error");
    } finally {
      setReading(false);
    }
  };
  const add = (entries: readonly Entry[]) => {
    setPlanned(null);
    void begin(card.name, entries);
  };

  return (
    <section class="card">
      <div class="card-head">
        <h2>Add items</h2>
        <button type="button" disabled={off} onClick={() => setSingle(true)}>
          Add one …
        </button>
      </div>
      <Drop
        label="Choose files"
        accept={FILES}
        multiple
        disabled={off}
        files={(files) => void take(files)}
        class="galleries-drop"
      >
        <span class="galleries-invite">
          <b>Drop pictures or a folder here</b>
          <small>with captions.tsv for their texts (file, tab, caption), or a .jsonl of id, text and payload</small>
        </span>
      </Drop>
      {demoEncoder.value && (
        <p class="hint galleries-after">
          This server runs the demo encoder, which knows drawn scenes: photographs can be added, but are hardly found.
          For those, start it with <code>ATTUNE_ENCODER</code>, a folder or a Hugging Face name.
        </p>
      )}
      <p role="status" class="unseen">
        {reading ? "Reading the files" : ours && !ours.running ? outcome(ours.report) : ""}
      </p>
      {busy && !ours && (
        <p class="hint galleries-after">
          Items are being added to <a href={link("galleries", current?.gallery ?? "")}>{current?.gallery}</a>; more can
          be added when that is done.
        </p>
      )}
      {planned && (
        <Planned planned={planned} existing={existing} busy={busy} add={add} forget={() => setPlanned(null)} />
      )}
      {!planned && ours && <Running job={ours} />}
      {single && <SingleDialog card={card} close={() => setSingle(false)} />}
    </section>
  );
}

const CHECK_PAGE = 1000;
const MOST_CHECKED = 20_000;

/** Which of the entries' ids the gallery has; null where it is too large to look. */
async function idsThere(card: GalleryCard, entries: readonly Entry[]): Promise<ReadonlySet<string> | null> {
  const wanted = new Set(entries.map((entry) => entry.id));
  const found = new Set<string>();
  for (let offset = 0; ; offset += CHECK_PAGE) {
    const page = await get<ItemPage>(`/galleries/${part(card.name)}/items?offset=${offset}&limit=${CHECK_PAGE}`);
    if (page.total > MOST_CHECKED) return null;
    for (const { id } of page.items) if (wanted.has(id)) found.add(id);
    if (offset + CHECK_PAGE >= page.total) return found;
  }
}

function Planned(props: {
  planned: Plan;
  existing: ReadonlySet<string> | null;
  busy: boolean;
  add: (entries: readonly Entry[]) => void;
  forget: () => void;
}) {
  const { planned, existing } = props;
  const heading = useRef<HTMLHeadingElement>(null);
  useEffect(() => heading.current?.focus(), [planned]);
  const good = planned.entries.filter((entry) => !entry.problem);
  const pictures = good.filter((entry) => entry.picture).length;
  const captions = good.filter((entry) => entry.picture && entry.text).length;
  const replaced = existing ? good.filter((entry) => existing.has(entry.id)).length : 0;
  const bad = planned.entries.length - good.length;
  const facts = [
    pictures > 0 &&
      `${count(pictures)} ${pictures === 1 ? "picture" : "pictures"}, ${captions === 0 ? "without captions" : captions === pictures ? "all with captions" : `${count(captions)} with captions`}`,
    good.length > pictures && `${count(good.length - pictures)} with a text alone`,
    replaced > 0 && `${count(replaced)} replace items of the same id`,
    existing === null && "items of the same id are replaced",
    bad > 0 && `${count(bad)} left out`,
  ].filter(Boolean);
  return (
    <div class="galleries-after stack">
      <div>
        <h3 ref={heading} tabIndex={-1}>
          {good.length > 0 ? `${itemsInWords(good.length)} will be added` : "Nothing here can be added"}
        </h3>
        <p class="muted">{facts.join(" · ")}</p>
        {planned.problems.length > 0 && (
          <ul class="galleries-problems">
            {planned.problems.slice(0, 8).map((problem) => (
              <li key={problem}>{problem}</li>
            ))}
            {planned.problems.length > 8 && <li>and {count(planned.problems.length - 8)} more</li>}
          </ul>
        )}
      </div>
      {planned.entries.length > 0 && <Entries entries={planned.entries} existing={existing} />}
      <div class="row">
        <button
          type="button"
          class="primary"
          disabled={good.length === 0 || props.busy}
          onClick={() => props.add(good)}
        >
          Add {itemsInWords(good.length)}
        </button>
        <button type="button" onClick={props.forget}>
          Cancel
        </button>
      </div>
    </div>
  );
}

function Entries({ entries, existing }: { entries: readonly Entry[]; existing: ReadonlySet<string> | null }) {
  const shown = useMemo(() => problemsFirst(entries).slice(0, SHOWN), [entries]);
  return (
    <div class="scroll galleries-entries" tabIndex={0} role="region" aria-label="What will be added">
      <table>
        <thead>
          <tr>
            <th scope="col">
              <span class="unseen">Picture</span>
            </th>
            <th scope="col">Id</th>
            <th scope="col">Text</th>
            <th scope="col">Note</th>
          </tr>
        </thead>
        <tbody>
          {shown.map((entry) => (
            <tr key={entry.id}>
              <td>{entry.picture && !entry.problem && <Thumb blob={entry.picture} />}</td>
              <td class="galleries-cell">{entry.id}</td>
              <td class="galleries-cell">{entry.text || <span class="muted">–</span>}</td>
              <td>
                {entry.problem ? (
                  <span class="c-bad">left out: {entry.problem}</span>
                ) : existing?.has(entry.id) ? (
                  "replaces"
                ) : (
                  ""
                )}
              </td>
            </tr>
          ))}
        </tbody>
      </table>
      {entries.length > shown.length && (
        <p class="hint galleries-more">and {count(entries.length - shown.length)} more</p>
      )}
    </div>
  );
}

function Thumb({ blob }: { blob: Blob }) {
  const [url, setUrl] = useState("");
  useEffect(() => {
    const made = URL.createObjectURL(blob);
    setUrl(made);
    return () => URL.revokeObjectURL(made);
  }, [blob]);
  return url ? (
    <img src={url} alt="" width="36" height="36" loading="lazy" decoding="async" class="galleries-thumb" />
  ) : null;
}

function outcome(report: Report): string {
  const facts = [
    report.added > 0 && `${count(report.added)} added`,
    report.replaced > 0 && `${count(report.replaced)} replaced`,
    report.failed.length > 0 && `${count(report.failed.length)} failed`,
    report.left.length > 0 && `${count(report.left.length)} not sent`,
  ].filter(Boolean);
  return facts.join(", ") || "Nothing was added";
}

function Running({ job: now }: { job: Job }) {
  const { report } = now;
  const done = settled(report);
  const again = [...report.failed.map(({ entry }) => entry), ...report.left];
  const heading = useRef<HTMLHeadingElement>(null);
  const ran = useRef(now.running);
  useEffect(() => {
    // Stop is gone from under the finger: the report takes the focus.
    if (ran.current && !now.running && document.activeElement === document.body) heading.current?.focus();
    ran.current = now.running;
  }, [now.running]);
  if (now.running) {
    const rate = now.rate === null || done === 0 ? "" : ` · ${figure(now.rate, 2)} a second`;
    return (
      <div class="galleries-after">
        <Progress value={done / Math.max(1, report.total)} label={`${count(done)} of ${count(report.total)}${rate}`} />
        <p class="row galleries-after">
          <button type="button" disabled={now.stopping} onClick={now.stop}>
            {now.stopping ? "Stopping …" : "Stop"}
          </button>
          {report.failed.length > 0 && <span class="c-bad">{count(report.failed.length)} failed</span>}
          <span role="status">{report.waiting && `Waiting for the server: ${report.waiting}`}</span>
        </p>
      </div>
    );
  }
  return (
    <div class="galleries-after stack">
      <div class="row">
        <h3 ref={heading} tabIndex={-1}>
          {outcome(report)}
        </h3>
        {again.length > 0 && (
          <button type="button" onClick={() => void begin(now.gallery, again)}>
            {report.failed.length > 0 ? "Retry the failed" : "Send the rest"}
          </button>
        )}
        <button type="button" class="quiet" onClick={() => (job.value = null)}>
          Dismiss
        </button>
      </div>
      {report.failed.length > 0 && (
        <div class="scroll galleries-entries" tabIndex={0} role="region" aria-label="What failed">
          <table>
            <thead>
              <tr>
                <th scope="col">File</th>
                <th scope="col">Why</th>
              </tr>
            </thead>
            <tbody>
              {report.failed.slice(0, 4 * SHOWN).map(({ entry, reason }) => (
                <tr key={entry.id}>
                  <td class="galleries-cell">{entry.source}</td>
                  <td>{reason}</td>
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      )}
    </div>
  );
}
