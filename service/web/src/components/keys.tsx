import { useState } from "preact/hooks";
import { keys, wantedKey } from "../lib/api.ts";
import { config, loadGalleries, tell, unlock } from "../lib/state.ts";
import { Dialog } from "./dialog.tsx";

const NAMES = { admin: "Admin key", api: "API key" } as const;

/** Asks for a key when a request needs one. The key stays in this page's memory. */
export function KeyDialog() {
  const [text, setText] = useState("");
  const wanted = wantedKey.value;
  if (!wanted) return null;
  const close = (given: boolean) => {
    wantedKey.value = null;
    setText("");
    wanted.answer(given);
  };
  return (
    <Dialog title={NAMES[wanted.kind]} close={() => close(false)}>
      <form
        onSubmit={(event) => {
          event.preventDefault();
          keys.value = { ...keys.value, [wanted.kind]: text.trim() };
          close(true);
        }}
      >
        <p role="alert">{wanted.why}</p>
        <label class="field">
          <span>{NAMES[wanted.kind]}</span>
          <input
            type="password"
            name="key"
            autocomplete="off"
            autofocus
            required
            value={text}
            onInput={(event) => setText(event.currentTarget.value)}
          />
        </label>
        <p class="hint">It is kept in the memory of this page, and gone when the page is.</p>
        <footer>
          <button type="button" onClick={() => close(false)}>
            Cancel
          </button>
          <button type="submit" class="primary">
            Use it
          </button>
        </footer>
      </form>
    </Dialog>
  );
}

/** Shows which keys the page holds; a click forgets or asks. */
export function KeyButton() {
  const server = config.value?.keys;
  if (!server?.admin && !server?.api) return null;
  const held = keys.value.admin !== "" || keys.value.api !== "";
  // A request that needs the key asks for it, and asks again while it is wrong.
  const ask = () => void (server.admin ? unlock() : tell(loadGalleries));
  return (
    <button
      type="button"
      class={`key ${held ? "held" : ""}`}
      onClick={() => (held ? (keys.value = { admin: "", api: "" }) : ask())}
    >
      {held ? "Forget key" : "Key …"}
    </button>
  );
}
