import { useState } from "preact/hooks";
import { Dialog, DialogEnd } from "../../components/dialog.tsx";
import { part, remove } from "../../lib/api.ts";
import { go, route } from "../../lib/router.ts";
import { pythonCall } from "../../lib/snippets.ts";
import { messageOf, say } from "../../lib/state.ts";
import type { GalleryCard } from "../../lib/types.ts";
import { galleriesChanged } from "./changes.ts";
import { items } from "./words.ts";

/** From this many items on, its name has to be typed. */
const TYPED_FROM = 1000;

export function DeleteGallery({ card, close }: { card: GalleryCard; close: () => void }) {
  const [typed, setTyped] = useState("");
  const [busy, setBusy] = useState(false);
  const [failed, setFailed] = useState("");
  const type = card.items > TYPED_FROM;

  const act = async () => {
    setBusy(true);
    try {
      await remove(`/galleries/${part(card.name)}`, {
        remember: true,
        python: pythonCall("client.delete_gallery", [card.name]),
      });
      close();
      say(`Deleted the gallery ${card.name}`);
      if (route.value[1] === card.name) go("galleries");
      await galleriesChanged();
    } catch (error) {
      setFailed(messageOf(error));
      setBusy(false);
    }
  };

  return (
    <Dialog title={`Delete ${card.name}?`} close={close}>
      <form
        onSubmit={(event) => {
          event.preventDefault();
          if (!type || typed === card.name) void act();
        }}
      >
        <p>{card.items === 0 ? "It is empty." : `Its ${items(card.items)} go with it.`} This cannot be taken back.</p>
        {type && (
          <label class="field">
            <span>Type “{card.name}” to go on</span>
            <input
              type="text"
              autofocus
              autocomplete="off"
              spellcheck={false}
              value={typed}
              onInput={(event) => setTyped(event.currentTarget.value)}
            />
          </label>
        )}
        <DialogEnd danger refused={failed} cancel={close} disabled={busy || (type && typed !== card.name)}>
          Delete {card.items > 0 ? items(card.items) : "gallery"}
        </DialogEnd>
      </form>
    </Dialog>
  );
}
