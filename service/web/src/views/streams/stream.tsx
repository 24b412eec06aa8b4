import type { ComponentChildren } from "preact";
import { useCallback, useEffect, useState } from "preact/hooks";
import { confirmed } from "../../components/dialog.tsx";
import { get, part, post, remove } from "../../lib/api.ts";
import { ago, count } from "../../lib/format.ts";
import { go, link } from "../../lib/router.ts";
import { pythonCall } from "../../lib/snippets.ts";
import { connection, forget, say, show, tell } from "../../lib/state.ts";
import type { SnapshotCard, StreamCard } from "../../lib/types.ts";
import { conditionOf } from "./condition.ts";
import { batchesOf } from "./order.ts";
import { Locked, Stale, StateBadge } from "./parts.tsx";
import { SettingsCard } from "./settings.tsx";
import { Snapshots, TakeSnapshot } from "./snapshots.tsx";
import { TrackSection } from "./track.tsx";
import { clock, keyOf, useHistory, useStream, useWork } from "./use.ts";

/** `#/streams/NAME`. */
export function StreamPage({ name }: { name: string }) {
  const { card, state, why, again } = useStream(name);
  if (state === "gone")
    return (
      <Frame name={name}>
        <Gone name={name} was={card !== null} again={again} />
      </Frame>
    );
  if (card) return <There card={card} />;
  return (
    <Frame name={name}>
      {state === "locked" && <Locked />}
      {state === "loading" && <p class="muted">Asking the server …</p>}
      {state === "failed" && (
        <section class="card empty" role="alert">
          <p>The stream cannot be shown: {why}.</p>
          <button type="button" onClick={again}>
            Try again
          </button>
        </section>
      )}
    </Frame>
  );
}

const Frame = (props: { name: string; children: ComponentChildren }) => (
  <div class="stack">
    <header>
      <a class="streams-back" href={link("streams")}>
        ← All streams
      </a>
      <h1 class="streams-title">{props.name}</h1>
    </header>
    {props.children}
  </div>
);

function Gone({ name, was, again }: { name: string; was: boolean; again: () => void }) {
  return (
    <section class="card empty" role="status">
      <h2>{was ? "This stream is gone" : "There is no such stream"}</h2>
      <p>
        {was ? `“${name}” has been deleted, or has expired.` : `“${name}” has not been used yet, or has been deleted.`}{" "}
        It begins anew with the next query that names it.
      </p>
      <p class="row streams-middle">
        <a class="button" href={link("streams")}>
          All streams
        </a>
        <button type="button" onClick={again}>
          Look again
        </button>
      </p>
    </section>
  );
}

/** Snapshots of a stream, as they are known; `load` asks again. */
function useSnapshots(name: string): { snapshots: SnapshotCard[] | null; load: () => Promise<SnapshotCard[]> } {
  const [snapshots, setSnapshots] = useState<SnapshotCard[] | null>(null);
  const connected = connection.value === "live";
  const load = useCallback(async () => {
    const answer = await get<{ snapshots: SnapshotCard[] }>(`/admin/streams/${part(name)}/snapshots`);
    setSnapshots(answer.snapshots);
    return answer.snapshots;
  }, [name]);
  useEffect(() => void load().catch(() => undefined), [load, connected]);
  return { snapshots, load };
}

function There({ card }: { card: StreamCard }) {
  const now = clock.value;
  const { name } = card;
  const condition = conditionOf(card, now);
  const { applied, skipped, undone } = batchesOf(card);
  const histories = useHistory(name, card);
  const { snapshots, load } = useSnapshots(name);
  const { busy, run } = useWork();
  const [taking, setTaking] = useState(false);
  const path = `/admin/streams/${part(name)}`;

  const reset = async () => {
    const learned =
      card.version > 0
        ? `What it has learned (version ${card.version}, ${count(card.batches)} batches) is dropped.`
        : "Whatever it has gathered is dropped.";
    const kept = snapshots?.length ? " Its snapshots stay." : " Take a snapshot first if you may want it back.";
    if (!(await confirmed(`Reset “${name}”?`, `${learned} It goes on from the source model.${kept}`, "Reset"))) return;
    await run("reset", async () => {
      show(
        await post<StreamCard>(`${path}/reset`, undefined, {
          remember: true,
          python: pythonCall("client.reset_stream", [name]),
        }),
      );
      say(`“${name}” goes on from the source model`);
    });
  };
  const discard = async () => {
    let held = 0;
    if (!(await tell(async () => (held = (await load()).length)))) return;
    const also = held > 0 ? ` and its ${held === 1 ? "snapshot" : `${held} snapshots`}` : "";
    const text = `What it has learned and its settings are deleted${held > 0 ? ", and so are its snapshots" : ""}. This cannot be taken back.`;
    if (!(await confirmed(`Delete “${name}”${also}?`, text, held > 0 ? "Delete it all" : "Delete"))) return;
    await run("delete", async () => {
      await remove(`${path}${held > 0 ? "?force=true" : ""}`, {
        remember: true,
        python: pythonCall("client.delete_stream", [name], { force: held > 0 ? true : undefined }),
      });
      forget(name);
      say(`“${name}” is deleted`);
      go("streams");
    });
  };

  return (
    <div class="stack">
      <Stale />
      <header class="streams-head">
        <div class="grow">
          <a class="streams-back" href={link("streams")}>
            ← All streams
          </a>
          <div class="row">
            <h1 class="streams-title">{name}</h1>
            <StateBadge condition={condition} />
          </div>
          <p class="muted">{condition.why}</p>
          <p class="hint">
            Version {card.version} · {count(applied + skipped + undone)} batches · last query {ago(card.last_seen, now)}{" "}
            · made {ago(card.created_at, now)}
            {card.waiting ? ` · ${count(card.waiting)} waiting` : ""}
            {card.pinned ? " · pinned" : ""}
          </p>
        </div>
        <div class="row">
          <button type="button" class="primary" disabled={busy !== ""} onClick={() => setTaking(true)}>
            Take snapshot …
          </button>
          <button type="button" disabled={busy !== ""} onClick={() => void reset()}>
            Reset …
          </button>
          <button type="button" disabled={busy !== ""} onClick={() => void discard()}>
            Delete …
          </button>
        </div>
      </header>
      {taking && (
        <TakeSnapshot stream={name} taken={() => void load().catch(() => undefined)} close={() => setTaking(false)} />
      )}
      {card.tracks.length === 0 && (
        <section class="card empty">
          <p>It has nothing to show yet: it begins to learn with its first queries.</p>
        </section>
      )}
      {card.tracks.map((track, place) => (
        <TrackSection
          key={keyOf(track)}
          track={track}
          history={histories[keyOf(track)]!}
          now={now}
          group={`${name}-${place}`}
          method={(track.direction === "audio+video->label" ? card.classify?.method : card.method) ?? ""}
        />
      ))}
      <div class="columns streams-bottom">
        <Snapshots card={card} snapshots={snapshots} load={load} />
        <SettingsCard card={card} />
      </div>
    </div>
  );
}
