import { useEffect, useState } from "preact/hooks";
import { Badge } from "../../components/fields.tsx";
import { Preview } from "../../components/preview.tsx";
import { get, part } from "../../lib/api.ts";
import { ago, count } from "../../lib/format.ts";
import { link } from "../../lib/router.ts";
import { config, galleries, loadGalleries, messageOf, models } from "../../lib/state.ts";
import type { GalleryCard, Item, ItemPage } from "../../lib/types.ts";
import { CreateDialog } from "./create.tsx";
import { DeleteGallery } from "./remove.tsx";
import { contents, INDEX_WORDS } from "./words.ts";

export function GalleryList() {
  const [creating, setCreating] = useState(false);
  const [deleting, setDeleting] = useState<GalleryCard | null>(null);
  const [state, setState] = useState<"loading" | "ready" | string>(galleries.value.length > 0 ? "ready" : "loading");
  const load = () => {
    loadGalleries().then(
      () => setState("ready"),
      (error: unknown) => setState(messageOf(error)),
    );
  };
  useEffect(load, [models.value]); // loaded anew once a server that was not ready is
  const cards = galleries.value;
  const failed = state !== "loading" && state !== "ready";
  return (
    <div class="stack">
      <div class="row spread">
        <div class="grow">
          <h1>Galleries</h1>
          <p class="muted galleries-lead">What queries search: named collections of pictures and texts.</p>
        </div>
        <button type="button" class="primary" onClick={() => setCreating(true)}>
          New gallery
        </button>
      </div>
      {failed && (
        <p role="alert" class="card">
          The galleries could not be read: {state}.{" "}
          <button type="button" onClick={load}>
            Try again
          </button>
        </p>
      )}
      {state === "loading" && cards.length === 0 && (
        <p class="empty" role="status">
          Reading …
        </p>
      )}
      {state === "ready" && cards.length === 0 && (
        <p class="card empty">There are no galleries yet. Create one, then drop pictures into it.</p>
      )}
      {cards.length > 0 && (
        <ul class="galleries-cards">
          {cards.map((card) => (
            <li key={card.name}>
              <Card card={card} remove={() => setDeleting(card)} />
            </li>
          ))}
        </ul>
      )}
      {creating && <CreateDialog close={() => setCreating(false)} />}
      {deleting && <DeleteGallery card={deleting} close={() => setDeleting(null)} />}
    </div>
  );
}

function Card({ card, remove }: { card: GalleryCard; remove: () => void }) {
  const kind = String(card.index.kind ?? "");
  return (
    <article class="card galleries-card">
      <div class="row spread">
        <h2>
          <a href={link("galleries", card.name)}>{card.name}</a>
        </h2>
        <span class="row">
          {card.name === config.value?.default_gallery && <span class="hint">searched by default</span>}
          {card.status === "refused" && <Badge kind="bad">cannot be searched</Badge>}
        </span>
      </div>
      <Samples card={card} />
      {card.status === "refused" && <p class="galleries-why">{card.why}</p>}
      <p class="galleries-count">
        <b>{count(card.items)}</b> {card.items === 1 ? "item" : "items"} <span class="muted">{contents(card)}</span>
      </p>
      <p class="hint galleries-facts">
        <span title={INDEX_WORDS[kind]}>{kind} index</span>
        <span>{card.calibration ? `completed by “${card.calibration}”` : "no calibration"}</span>
        <span title={new Date(card.created_at * 1000).toLocaleString()}>created {ago(card.created_at)}</span>
      </p>
      <div class="row">
        <a class="button" href={link("galleries", card.name)} aria-label={`Open ${card.name}`}>
          Open
        </a>
        <button type="button" class="quiet galleries-delete" aria-label={`Delete ${card.name} …`} onClick={remove}>
          Delete …
        </button>
      </div>
    </article>
  );
}

const SAMPLES = 5;

/** A glimpse of what is in it. */
function Samples({ card }: { card: GalleryCard }) {
  const [items, setItems] = useState<Item[]>([]);
  useEffect(() => {
    const controller = new AbortController();
    if (card.items === 0) setItems([]);
    else {
      get<ItemPage>(`/galleries/${part(card.name)}/items?limit=${SAMPLES}`, { signal: controller.signal }).then(
        (page) => setItems(page.items),
        () => undefined,
      );
    }
    return () => controller.abort();
  }, [card.name, card.generation]);
  if (card.items === 0) return <p class="galleries-samples none">Nothing is in it yet: open it and drop pictures.</p>;
  return (
    <div class="galleries-samples" aria-hidden="true">
      {Array.from({ length: Math.min(SAMPLES, card.items) }, (_, place) => {
        const item = items[place];
        return item ? (
          <Preview key={item.id} path={item.preview} text={item.text ?? item.id} />
        ) : (
          <span key={place} class="preview" />
        );
      })}
    </div>
  );
}
