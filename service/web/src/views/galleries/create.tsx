import { useEffect, useState } from "preact/hooks";
import { Dialog, DialogEnd } from "../../components/dialog.tsx";
import { Select } from "../../components/fields.tsx";
import { get, post } from "../../lib/api.ts";
import { go } from "../../lib/router.ts";
import { pythonCall } from "../../lib/snippets.ts";
import { galleries, messageOf } from "../../lib/state.ts";
import type { GalleryCard } from "../../lib/types.ts";
import { galleriesChanged } from "./changes.ts";
import { nameProblem } from "./names.ts";
import { INDEX_WORDS } from "./words.ts";

interface Calibration {
  name: string;
  status: "ready" | "refused";
  task?: string;
  samples?: number;
}

const KINDS = ["flat", "ivf", "hnsw", "torch"] as const;

export function CreateDialog({ close }: { close: () => void }) {
  const [name, setName] = useState("");
  const [kind, setKind] = useState<(typeof KINDS)[number]>("flat");
  const [calibration, setCalibration] = useState("");
  const [calibrations, setCalibrations] = useState<Calibration[]>([]);
  const [busy, setBusy] = useState(false);
  const [refused, setRefused] = useState("");
  const problem = nameProblem(
    name,
    galleries.value.map((card) => card.name),
  );

  useEffect(() => {
    const controller = new AbortController();
    get<{ calibrations: Calibration[] }>("/admin/calibrations", { signal: controller.signal }).then(
      (answer) =>
        setCalibrations(answer.calibrations.filter((one) => one.status === "ready" && one.task === "retrieve")),
      (error: unknown) => {
        if (!controller.signal.aborted) setRefused(`The calibrations could not be read: ${messageOf(error)}`);
      },
    );
    return () => controller.abort();
  }, []);

  const create = async () => {
    setBusy(true);
    setRefused("");
    const index = { kind };
    try {
      await post<GalleryCard>(
        "/galleries",
        { name, index, ...(calibration ? { calibration } : {}) },
        {
          remember: true,
          python: pythonCall("client.create_gallery", [name], { index, calibration: calibration || undefined }),
        },
      );
      await galleriesChanged();
      close();
      go("galleries", name);
    } catch (error) {
      setRefused(messageOf(error));
      setBusy(false);
    }
  };

  return (
    <Dialog title="New gallery" close={close}>
      <form
        class="stack"
        onSubmit={(event) => {
          event.preventDefault();
          if (!busy && name && !problem) void create();
        }}
      >
        <label class="field">
          <span>Name</span>
          <input
            type="text"
            autofocus
            name="name"
            autocomplete="off"
            autocapitalize="none"
            spellcheck={false}
            value={name}
            aria-describedby="galleries-name-rule"
            aria-invalid={problem !== ""}
            onInput={(event) => setName(event.currentTarget.value)}
          />
          <small id="galleries-name-rule" role="status" class={problem ? "c-bad" : ""}>
            {problem || "Lower-case letters, digits, “.”, “_” and “-”. It cannot be changed later."}
          </small>
        </label>
        <Select
          label="Search"
          value={kind}
          change={setKind}
          hint={INDEX_WORDS[kind] ?? ""}
          choices={KINDS.map((value) => ({ value, label: value }))}
        />
        <Select
          label="Calibration"
          value={calibration}
          change={setCalibration}
          hint={
            calibration
              ? "Makes up for the picture or the text that an item or a query lacks. It stays the gallery's."
              : "Items are found by what they have: pictures by texts, texts by pictures."
          }
          choices={[{ value: "", label: "none" }, ...calibrations.map((one) => ({ value: one.name, label: one.name }))]}
        />
        <DialogEnd refused={refused} cancel={close} disabled={busy || name === "" || problem !== ""}>
          {busy ? "Creating …" : "Create"}
        </DialogEnd>
      </form>
    </Dialog>
  );
}
