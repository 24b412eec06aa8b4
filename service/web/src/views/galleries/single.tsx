import { useEffect, useState } from "preact/hooks";
import { confirmed, Dialog, DialogEnd } from "../../components/dialog.tsx";
import { Drop, pathOf } from "../../components/drop.tsx";
import { ApiError, get, part, post } from "../../lib/api.ts";
import { prepared } from "../../lib/pictures.ts";
import { pythonCall } from "../../lib/snippets.ts";
import { config, messageOf, say } from "../../lib/state.ts";
import type { GalleryCard } from "../../lib/types.ts";
import { galleriesChanged } from "./changes.ts";
import { isObject, type Payload } from "./lists.ts";
import { LONGEST_ID } from "./names.ts";
import type { WireItem } from "./upload.ts";

/** The payload as typed, or what is wrong with it. */
function readPayload(typed: string): Payload | string {
  if (typed.trim() === "") return {};
  try {
    const value: unknown = JSON.parse(typed);
    return isObject(value) ? value : 'A JSON object, such as {"colour": "red"}.';
  } catch {
    return "This is not JSON yet.";
  }
}

export function SingleDialog({ card, close }: { card: GalleryCard; close: () => void }) {
  const [id, setId] = useState("");
  const [text, setText] = useState("");
  const [picture, setPicture] = useState<File | null>(null);
  const [typed, setTyped] = useState("");
  const [busy, setBusy] = useState(false);
  const [refused, setRefused] = useState("");
  const payload = readPayload(typed);
  const wrong = typeof payload === "string" ? payload : "";
  const ready = id !== "" && (text.trim() !== "" || picture !== null) && !wrong && !busy;
  const path = `/galleries/${part(card.name)}/items`;

  const replacing = async (): Promise<boolean> => {
    try {
      await get(`${path}/${part(id)}`);
    } catch (error) {
      if (error instanceof ApiError && error.status === 404) return true;
      throw error;
    }
    return confirmed(`Replace “${id}”?`, "The gallery has an item of this id; what it has now is lost.", "Replace");
  };
  const add = async () => {
    if (typeof payload === "string") return;
    setBusy(true);
    setRefused("");
    try {
      if (await replacing()) {
        const item: WireItem = { id };
        const words = text.trim() ? { text } : {};
        const image = picture ? { image: await prepared(picture, config.value?.limits.image_bytes ?? 0) } : {};
        const rest = Object.keys(payload).length > 0 ? { payload } : {};
        const file = picture ? { image: picture.name } : {};
        const answer = await post<{ added: number }>(
          path,
          { items: [{ ...item, ...words, ...image, ...rest }] },
          {
            remember: true,
            files: picture ? [picture.name] : [],
            python: pythonCall("client.upsert_items", [card.name, [{ ...item, ...words, ...file, ...rest }]]),
          },
        );
        await galleriesChanged();
        say(`${answer.added > 0 ? "Added" : "Replaced"} ${id}`);
        close();
      }
    } catch (error) {
      setRefused(messageOf(error).replace(/^items\[0\]\.?/, ""));
    }
    setBusy(false);
  };

  return (
    <Dialog title={`Add an item to ${card.name}`} close={close}>
      <form
        class="stack"
        onSubmit={(event) => {
          event.preventDefault();
          if (ready) void add();
        }}
      >
        <label class="field">
          <span>Id</span>
          <input
            type="text"
            autocomplete="off"
            spellcheck={false}
            maxLength={LONGEST_ID}
            required
            value={id}
            onInput={(event) => setId(event.currentTarget.value)}
          />
        </label>
        <Drop
          label={picture ? "Another picture" : "Choose a picture"}
          accept="image/*"
          files={([file]) => {
            if (!file) return;
            setPicture(file);
            if (id === "") setId(pathOf(file));
          }}
        >
          {picture ? (
            <Chosen file={picture} remove={() => setPicture(null)} />
          ) : (
            <span class="muted">A picture, dropped or</span>
          )}
        </Drop>
        <label class="field">
          <span>Text</span>
          <textarea
            rows={2}
            maxLength={config.value?.limits.text_characters}
            value={text}
            onInput={(event) => setText(event.currentTarget.value)}
          />
          <small>A caption. An item needs a picture, a text, or both.</small>
        </label>
        <label class="field">
          <span>Payload</span>
          <textarea
            rows={3}
            class="mono"
            spellcheck={false}
            placeholder={'{"colour": "red"}'}
            value={typed}
            aria-invalid={wrong !== ""}
            onInput={(event) => setTyped(event.currentTarget.value)}
          />
          <small class={wrong ? "c-bad" : ""}>
            {wrong || "Comes back with each hit, and filters look at it. May be empty."}
          </small>
        </label>
        <DialogEnd refused={refused} cancel={close} disabled={!ready}>
          {busy ? "Adding …" : "Add"}
        </DialogEnd>
      </form>
    </Dialog>
  );
}

function Chosen({ file, remove }: { file: File; remove: () => void }) {
  const [url, setUrl] = useState("");
  useEffect(() => {
    const made = URL.createObjectURL(file);
    setUrl(made);
    return () => URL.revokeObjectURL(made);
  }, [file]);
  return (
    <span class="row">
      {url && <img src={url} alt="" width="56" height="56" class="galleries-thumb" />}
      <span>{file.name}</span>
      <button type="button" class="icon" aria-label={`Remove ${file.name}`} onClick={remove}>
        ✕
      </button>
    </span>
  );
}
