import { useState } from "preact/hooks";
import { confirmed } from "../../components/dialog.tsx";
import { Field, Select } from "../../components/fields.tsx";
import { part, put } from "../../lib/api.ts";
import { count, words } from "../../lib/format.ts";
import { learnedBatches, tracksOf } from "../../lib/methods.ts";
import { pythonCall } from "../../lib/snippets.ts";
import { models, say, show } from "../../lib/state.ts";
import type { Json, MethodCard, StreamCard, Task } from "../../lib/types.ts";
import { controlsOf, draftOf, NONE, settingsOf, written, type Control, type Draft } from "./form.ts";
import { useWork } from "./use.ts";

/** How a stream adapts, and how it is kept. */
export function SettingsCard({ card }: { card: StreamCard }) {
  const offered = models.value;
  return (
    <section class="card stack" aria-labelledby="streams-settings">
      <h2 id="streams-settings">Settings</h2>
      {offered && <MethodForm key="retrieve" card={card} task="retrieve" title="Retrieval" methods={offered.methods} />}
      {offered?.classifier && card.classify && (
        <MethodForm
          key="classify"
          card={card}
          task="classify"
          title="Classification"
          methods={offered.classifier.methods}
        />
      )}
      <KeepForm card={card} />
    </section>
  );
}

interface Edited {
  method: string;
  preset: string;
  draft: Draft;
}

async function configured(card: StreamCard, changes: Record<string, Json>): Promise<boolean> {
  const answer = await put<StreamCard & { reset?: boolean }>(`/admin/streams/${part(card.name)}`, changes, {
    remember: true,
    python: pythonCall("client.configure_stream", [card.name], changes),
  });
  const { reset, ...next } = answer;
  show(next);
  return reset ?? false;
}

function MethodForm(props: { card: StreamCard; task: Task; title: string; methods: Record<string, MethodCard> }) {
  const { card, task, methods } = props;
  const current = task === "retrieve" ? card : card.classify!;
  const [edited, setEdited] = useState<Edited | null>(null);
  const { busy, run } = useWork();
  const { method, preset, draft } = edited ?? { method: current.method, ...draftOf(current.settings) };
  const chosen = methods[method];
  const controls = chosen ? controlsOf(chosen, preset) : [];
  const { settings, wrong } = settingsOf(controls, draft, preset);
  const presets = Object.keys(chosen?.presets ?? {});
  const tracks = tracksOf(card, task);
  const drops = method !== current.method && tracks.length > 0;
  const change = (news: Partial<Edited>) => setEdited({ method, preset, draft, ...news });

  const submit = async () => {
    const text = `What the stream has learned with ${current.method} (${count(learnedBatches(card, task))} batches) is dropped, and ${method} begins at the source model.`;
    if (drops && !(await confirmed(`Change from ${current.method} to ${method}?`, text, "Change and drop"))) return;
    await run("save", async () => {
      const reset = await configured(card, { method, task, settings });
      setEdited(null);
      say(reset ? "Saved. What had been learned was dropped." : "Saved. What has been learned stays.");
    });
  };

  return (
    <form
      class="stack streams-form"
      aria-label={`${props.title} method`}
      onSubmit={(event) => {
        event.preventDefault();
        void submit();
      }}
    >
      <Select
        label={`${props.title} method`}
        value={method}
        hint={chosen?.summary ?? ""}
        choices={Object.keys(methods)}
        disabled={busy !== ""}
        change={(value) =>
          change({ method: value, preset: "", draft: value === current.method ? draftOf(current.settings).draft : {} })
        }
      />
      {presets.length > 1 && (
        <Select
          label="Preset"
          value={preset}
          choices={[{ value: "", label: "none" }, ...presets.map((value) => ({ value, label: value }))]}
          change={(value) => change({ preset: value })}
        />
      )}
      {controls.length > 0 && (
        <details>
          <summary>Its settings{setWords(settings)}</summary>
          <div class="streams-controls">
            {controls.map((control) => (
              <SettingField
                key={control.name}
                control={control}
                text={draft[control.name] ?? ""}
                wrong={wrong[control.name] ?? ""}
                change={(text) => change({ draft: { ...draft, [control.name]: text } })}
              />
            ))}
          </div>
        </details>
      )}
      {drops && <p class="c-warn">Another method starts anew: what has been learned will be dropped.</p>}
      {edited && (
        <Ends
          save="Save method"
          busy={busy !== ""}
          wrong={Object.keys(wrong).length > 0}
          discard={() => setEdited(null)}
        />
      )}
    </form>
  );
}

function setWords(settings: Record<string, Json>): string {
  const set = Object.keys(settings).filter((name) => name !== "preset").length;
  return set === 0 ? ": all as usual" : `: ${set} set`;
}

const standardOf = ({ standard }: Control): string =>
  standard === true ? "on" : standard === false ? "off" : written(standard);

function SettingField({
  control,
  text,
  wrong,
  change,
}: {
  control: Control;
  text: string;
  wrong: string;
  change: (text: string) => void;
}) {
  const label = words(control.name);
  const usual = `usual: ${standardOf(control)}`;
  if (control.kind === "switch" || control.kind === "choice") {
    const values =
      control.kind === "switch"
        ? [
            { value: "true", label: "on" },
            { value: "false", label: "off" },
          ]
        : control.choices.map((value) => ({ value, label: value }));
    const none = control.nullable ? [{ value: NONE, label: NONE }] : [];
    return (
      <Select
        label={label}
        value={text}
        choices={[{ value: "", label: usual }, ...values, ...none]}
        change={change}
        hint={control.description}
      />
    );
  }
  return (
    <Field label={label} hint={control.description}>
      <input
        type="text"
        inputMode={control.nullable || control.kind === "json" ? "text" : "decimal"}
        value={text}
        placeholder={usual}
        autocomplete="off"
        spellcheck={false}
        aria-invalid={wrong !== ""}
        onInput={(event) => change(event.currentTarget.value)}
      />
      {control.nullable && <small>A number, or “{NONE}”.</small>}
      {wrong && (
        <small class="c-bad" role="alert">
          {wrong}
        </small>
      )}
    </Field>
  );
}

const POLICIES: Record<string, string> = {
  "": "as set for the server",
  off: "off: measure nothing",
  warn: "warn: only tell",
  freeze: "freeze: stop learning while it lasts",
  rollback: "rollback: back to the last good state",
  reset: "reset: back to the source model",
};

/** The guard's policy, and whether the stream stays in memory. */
function KeepForm({ card }: { card: StreamCard }) {
  const [edited, setEdited] = useState<{ policy: string; pinned: boolean } | null>(null);
  const { busy, run } = useWork();
  const set = card.guard.policy;
  const { policy, pinned } = edited ?? { policy: typeof set === "string" ? set : "", pinned: card.pinned };
  const submit = () =>
    run("save", async () => {
      const { policy: _, ...others } = card.guard;
      await configured(card, { pinned, guard: policy ? { ...others, policy } : others });
      setEdited(null);
      say("Saved. What has been learned stays.");
    });
  return (
    <form
      class="stack streams-form"
      aria-label="Guard and memory"
      onSubmit={(event) => {
        event.preventDefault();
        void submit();
      }}
    >
      <Select
        label="Guard"
        hint="What follows when a batch is unusual, or adaptation does harm."
        value={policy}
        disabled={busy !== ""}
        choices={Object.entries(POLICIES).map(([value, label]) => ({ value, label }))}
        change={(value) => setEdited({ pinned, policy: value })}
      />
      <label class="streams-check">
        <input
          type="checkbox"
          checked={pinned}
          disabled={busy !== ""}
          onChange={(event) => setEdited({ policy, pinned: event.currentTarget.checked })}
        />
        <span>
          Pinned <small>stays in memory and never expires</small>
        </span>
      </label>
      {edited && <Ends save="Save guard and memory" busy={busy !== ""} discard={() => setEdited(null)} />}
    </form>
  );
}

/** The buttons below what has been edited. */
function Ends(props: { save: string; busy: boolean; wrong?: boolean; discard: () => void }) {
  return (
    <div class="row">
      <button type="submit" class="primary" disabled={props.busy || (props.wrong ?? false)}>
        {props.save}
      </button>
      <button type="button" disabled={props.busy} onClick={props.discard}>
        Discard changes
      </button>
    </div>
  );
}
