import { Dialog } from "../../components/dialog.tsx";
import { Preview } from "../../components/preview.tsx";
import { go } from "../../lib/router.ts";
import { gallery as searched, searchFor } from "../../lib/state.ts";
import type { Item } from "../../lib/types.ts";
import { MODALITY_WORDS } from "./words.ts";

export function ItemDialog(props: { gallery: string; item: Item; close: () => void; remove: () => void }) {
  const { gallery, item, close } = props;
  const search = () => {
    searched.value = gallery;
    searchFor.value = { text: item.preview ? null : item.text, picture: item.preview ?? null };
    close();
    go("search");
  };
  const known = item.modalities.map((modality) => MODALITY_WORDS[modality]).join(" and ");
  return (
    <Dialog title={item.id} close={close} wide>
      <div class={item.preview ? "galleries-item" : ""}>
        {item.preview && <Preview path={item.preview} text={item.text ?? item.id} class="galleries-large" />}
        <dl class="galleries-facts-of-item">
          <dt>Id</dt>
          <dd class="mono">{item.id}</dd>
          <dt>Text</dt>
          <dd>{item.text ?? <span class="muted">none</span>}</dd>
          <dt>Found by</dt>
          <dd>
            {known ? `its ${known}` : "ready embeddings"}
            {!item.preview && item.modalities.includes("image") && <span class="muted"> (no preview was kept)</span>}
          </dd>
          <dt>Payload</dt>
          <dd>
            {Object.keys(item.payload).length > 0 ? (
              <pre class="code" tabIndex={0} aria-label="Payload">
                {JSON.stringify(item.payload, null, 2)}
              </pre>
            ) : (
              <span class="muted">empty</span>
            )}
          </dd>
        </dl>
      </div>
      <footer>
        <button type="button" class="quiet galleries-delete" onClick={props.remove}>
          Delete …
        </button>
        <button type="button" class="primary" disabled={!item.preview && !item.text} onClick={search}>
          Search with this
        </button>
      </footer>
    </Dialog>
  );
}
