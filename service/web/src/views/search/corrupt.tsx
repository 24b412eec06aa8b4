import { CorruptionFields } from "../../components/corruption-fields.tsx";
import { Trouble } from "../../components/trouble.tsx";
import { corruptionsTrouble, loadCorruptions } from "../../lib/corruptions.ts";
import { words as spaced } from "../../lib/format.ts";
import { save } from "../../lib/pictures.ts";
import type { Modality } from "../../lib/types.ts";
import { corrupt } from "./search.ts";
import { corruption, degraded, degradeTrouble, degrading, fileName, kinds } from "./state.ts";
import { differences } from "./words.ts";

/** Degrade the query and see it degrade. `send`: make a stream of such queries. */
export function CorruptCard(props: { send: (kind: Modality) => void }) {
  const shown = kinds.value;
  if (corruptionsTrouble.value) {
    return (
      <section class="card search-corrupt">
        <h2>Corrupt it</h2>
        <Trouble again={() => void loadCorruptions()}>{corruptionsTrouble.value}</Trouble>
      </section>
    );
  }
  const active = shown.filter((kind) => corruption.value[kind]);
  const first = active[0];
  return (
    <section class="card search-corrupt" aria-labelledby="search-corrupt">
      <div class="card-head">
        <h2 id="search-corrupt">Corrupt it</h2>
        {first && (
          <button type="button" class="quiet" onClick={() => props.send(first)}>
            Send a stream …
          </button>
        )}
      </div>
      {shown.length === 0 && <p class="muted">There is no query yet.</p>}
      {shown.map((kind) => (
        <div key={kind} class="search-corrupt-fields">
          <CorruptionFields
            medium={kind}
            label={kind === "image" ? "Of the picture" : "Of the words"}
            value={corruption.value[kind]}
            change={(value) => corrupt(kind, value)}
          />
        </div>
      ))}
      {degradeTrouble.value && <Trouble>{degradeTrouble.value}</Trouble>}
      {first ? (
        <Degraded />
      ) : (
        shown.length > 0 && (
          <p class="search-clean">The query is clean. Make it worse, and see who still finds the right item.</p>
        )
      )}
    </section>
  );
}

function Degraded() {
  const made = degraded.value;
  return (
    <div class="search-degraded" aria-busy={degrading.value}>
      {made?.query.image && corruption.value.image && (
        <div class="search-pair">
          <figure>
            <img src={made.clean.image} alt="The picture as it was" />
            <figcaption>as it was</figcaption>
          </figure>
          <span aria-hidden="true">→</span>
          <figure>
            <img
              src={made.query.image}
              alt={`The picture with ${spaced(corruption.value.image.name)}, severity ${corruption.value.image.severity}`}
            />
            <figcaption>
              as it is sent{" "}
              <button type="button" class="quiet" onClick={() => void saveDegraded(made.query.image!)}>
                Save
              </button>
            </figcaption>
          </figure>
        </div>
      )}
      {made?.query.text && made.clean.text && corruption.value.text && (
        <Marked before={made.clean.text} after={made.query.text} />
      )}
    </div>
  );
}

async function saveDegraded(uri: string): Promise<void> {
  const [head = "", content = ""] = uri.split(",", 2);
  const bytes = Uint8Array.from(atob(content), (character) => character.charCodeAt(0));
  save(new Blob([bytes], { type: head.slice(5).split(";")[0] ?? "image/png" }), fileName());
}

function Marked(props: { before: string; after: string }) {
  const made = differences(props.before, props.after);
  return (
    <dl class="search-marked">
      <dt>as it was</dt>
      <dd>{made.before.map((piece, place) => (piece.changed ? <del key={place}>{piece.text}</del> : piece.text))}</dd>
      <dt>as it is sent</dt>
      <dd>{made.after.map((piece, place) => (piece.changed ? <ins key={place}>{piece.text}</ins> : piece.text))}</dd>
    </dl>
  );
}
