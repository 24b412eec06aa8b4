import { useState } from "preact/hooks";
import { Dialog, confirmed } from "../../components/dialog.tsx";
import { Drop } from "../../components/drop.tsx";
import { Field, Select } from "../../components/fields.tsx";
import { part, post, remove, request, requestBlob } from "../../lib/api.ts";
import { bytes, moment } from "../../lib/format.ts";
import { save } from "../../lib/pictures.ts";
import { pythonCall } from "../../lib/snippets.ts";
import { config, messageOf, say, show } from "../../lib/state.ts";
import type { SnapshotCard, StreamCard } from "../../lib/types.ts";
import { CompareDialog } from "./compare.tsx";
import { useWork } from "./use.ts";

const NAME = "[A-Za-z0-9](\\.?[A-Za-z0-9_\\-])*\\.?";
const NAME_HINT = "Letters, digits, “.”, “_” and “-”; empty: the server finds one.";
const NOW = "";

type Load = () => Promise<SnapshotCard[]>;

/** Snapshots of a stream: take, restore, compare, carry elsewhere. */
export function Snapshots({
  card,
  snapshots,
  load,
}: {
  card: StreamCard;
  snapshots: SnapshotCard[] | null;
  load: Load;
}) {
  const { busy, run } = useWork();
  const [compared, setCompared] = useState<{ first: string; second: string } | null>(null);
  const base = `/admin/streams/${part(card.name)}/snapshots`;
  const at = (snapshot: SnapshotCard) => `${base}/${part(snapshot.name)}`;

  const restore = async (snapshot: SnapshotCard) => {
    const text = `The stream goes back to version ${snapshot.version} of ${moment(snapshot.created_at)}, with the method it had then. What it has learned since (now version ${card.version}) is dropped.`;
    if (!(await confirmed(`Restore “${snapshot.name}”?`, text, "Restore"))) return;
    await run("restore", async () => {
      show(
        await post<StreamCard>(`${at(snapshot)}/restore`, undefined, {
          remember: true,
          python: pythonCall("client.restore_snapshot", [card.name, snapshot.name]),
        }),
      );
      say(`“${card.name}” is as it was in “${snapshot.name}”`);
    });
  };
  const discard = async (snapshot: SnapshotCard) => {
    if (
      !(await confirmed(
        `Delete snapshot “${snapshot.name}”?`,
        "The stream stays as it is. This cannot be taken back.",
        "Delete",
      ))
    )
      return;
    await run("delete", async () => {
      await remove(at(snapshot), {
        remember: true,
        python: pythonCall("client.delete_snapshot", [card.name, snapshot.name]),
      });
      say(`Snapshot “${snapshot.name}” is deleted`);
      await load();
    });
  };
  const download = (snapshot: SnapshotCard) =>
    run("download", async () =>
      save(await requestBlob(`${at(snapshot)}/export`), `${card.name}-${snapshot.name}.attune`),
    );

  return (
    <section class="card" aria-labelledby="streams-snapshots">
      <h2 id="streams-snapshots">Snapshots</h2>
      {snapshots === null && <p class="muted">Asking the server …</p>}
      {snapshots?.length === 0 && (
        <p class="muted">
          None yet. A snapshot keeps what the stream has learned, to go back to, to compare with, or to carry to another
          server.
        </p>
      )}
      {snapshots && snapshots.length > 0 && (
        <>
          <ul class="streams-snapshots" aria-label="Snapshots">
            {snapshots.toReversed().map((snapshot) => (
              <li key={snapshot.name}>
                <div class="grow">
                  <b>{snapshot.name}</b> <span class="muted">version {snapshot.version}</span>
                  <p class="hint">
                    {moment(snapshot.created_at)}
                    {snapshot.bytes ? ` · ${bytes(snapshot.bytes)}` : ""}
                    {snapshot.note ? ` · ${snapshot.note}` : ""}
                  </p>
                </div>
                <div class="row">
                  <button
                    type="button"
                    disabled={busy !== ""}
                    aria-label={`Restore ${snapshot.name}`}
                    onClick={() => void restore(snapshot)}
                  >
                    Restore …
                  </button>
                  <button
                    type="button"
                    disabled={busy !== ""}
                    aria-label={`Download ${snapshot.name}`}
                    onClick={() => void download(snapshot)}
                  >
                    Download
                  </button>
                  <button
                    type="button"
                    class="icon"
                    disabled={busy !== ""}
                    aria-label={`Delete ${snapshot.name}`}
                    title="Delete"
                    onClick={() => void discard(snapshot)}
                  >
                    ✕
                  </button>
                </div>
              </li>
            ))}
          </ul>
          <CompareForm snapshots={snapshots} compare={(first, second) => setCompared({ first, second })} />
        </>
      )}
      <Upload base={base} stream={card.name} load={load} />
      {compared && (
        <CompareDialog
          stream={card.name}
          first={compared.first}
          second={compared.second}
          close={() => setCompared(null)}
        />
      )}
    </section>
  );
}

function CompareForm(props: { snapshots: SnapshotCard[]; compare: (first: string, second: string) => void }) {
  const newest = props.snapshots.at(-1)?.name ?? "";
  const [chosen, setChosen] = useState(newest);
  const [other, setOther] = useState(NOW);
  const names = props.snapshots.map(({ name }) => name).toReversed();
  const first = names.includes(chosen) ? chosen : newest;
  const second = names.includes(other) && other !== first ? other : NOW;
  const others = [
    { value: NOW, label: "the stream as it is now" },
    ...names.filter((name) => name !== first).map((value) => ({ value, label: value })),
  ];
  return (
    <form
      class="row end streams-compare-form"
      onSubmit={(event) => {
        event.preventDefault();
        props.compare(first, second);
      }}
    >
      <Select label="Compare" value={first} choices={names} change={setChosen} class="grow" />
      <Select label="with" value={second} choices={others} change={setOther} class="grow" />
      <button type="submit">Compare</button>
    </form>
  );
}

function Upload({ base, stream, load }: { base: string; stream: string; load: Load }) {
  const [name, setName] = useState("");
  const { busy, run } = useWork();
  const most = config.value?.limits.snapshot_bytes ?? Number.POSITIVE_INFINITY;
  const take = ([file]: File[]) =>
    run("upload", async () => {
      if (!file) return;
      if (file.size > most) throw new Error(`“${file.name}” has ${bytes(file.size)}; the server takes ${bytes(most)}`);
      const wanted = name.trim();
      const card = await request<SnapshotCard>("POST", `${base}/import${wanted ? `?name=${part(wanted)}` : ""}`, {
        upload: new Blob([file], { type: "application/octet-stream" }),
        uploadName: file.name,
        remember: true,
        python: pythonCall("client.import_snapshot", [stream, file.name, ...(wanted ? [wanted] : [])]),
      });
      setName("");
      say(`“${file.name}” is here as snapshot “${card.name}”; restore it to use it`);
      await load();
    });
  return (
    <details class="streams-upload">
      <summary>Upload a snapshot file</summary>
      <Field label="Name here" hint="Empty: the name in the file.">
        <input
          type="text"
          value={name}
          maxLength={64}
          autocomplete="off"
          spellcheck={false}
          onInput={(event) => setName(event.currentTarget.value)}
        />
      </Field>
      <Drop
        label="Choose a file"
        accept=".attune,application/octet-stream"
        files={(files) => void take(files)}
        disabled={busy !== ""}
      >
        <span class="muted">{busy ? "Uploading …" : "Drop an .attune file here, or"}</span>
      </Drop>
    </details>
  );
}

export function TakeSnapshot(props: { stream: string; taken: () => void; close: () => void }) {
  const [name, setName] = useState("");
  const [note, setNote] = useState("");
  const [wrong, setWrong] = useState("");
  const [busy, setBusy] = useState(false);
  const take = async () => {
    const body = { ...(name.trim() ? { name: name.trim() } : {}), note: note.trim() };
    setBusy(true);
    try {
      const made = await post<SnapshotCard>(`/admin/streams/${part(props.stream)}/snapshots`, body, {
        remember: true,
        python: pythonCall("client.create_snapshot", [props.stream, ...(body.name ? [body.name] : [])], {
          note: body.note || undefined,
        }),
      });
      say(`Snapshot “${made.name}” is taken, of version ${made.version}`);
      props.taken();
      props.close();
    } catch (error) {
      setWrong(messageOf(error));
      setBusy(false);
    }
  };
  return (
    <Dialog title="Take a snapshot" close={props.close}>
      <form
        class="stack"
        onSubmit={(event) => {
          event.preventDefault();
          void take();
        }}
      >
        <Field label="Name" hint={NAME_HINT}>
          <input
            type="text"
            autofocus
            value={name}
            maxLength={64}
            pattern={NAME}
            autocomplete="off"
            spellcheck={false}
            onInput={(event) => setName(event.currentTarget.value)}
          />
        </Field>
        <Field label="Note" hint="A line for people, such as “before the new cameras”.">
          <input type="text" value={note} maxLength={1000} onInput={(event) => setNote(event.currentTarget.value)} />
        </Field>
        {wrong && (
          <p class="c-bad" role="alert">
            {wrong}
          </p>
        )}
        <footer>
          <button type="button" onClick={props.close}>
            Cancel
          </button>
          <button type="submit" class="primary" disabled={busy}>
            Take it
          </button>
        </footer>
      </form>
    </Dialog>
  );
}
