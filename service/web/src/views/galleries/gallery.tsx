import { useEffect, useRef, useState } from "preact/hooks";
import { confirmed } from "../../components/dialog.tsx";
import { Badge } from "../../components/fields.tsx";
import { ApiError, get, part, post } from "../../lib/api.ts";
import { ago, count } from "../../lib/format.ts";
import { go, link } from "../../lib/router.ts";
import { config, galleries, gallery as searched, messageOf, say, tell } from "../../lib/state.ts";
import { pythonCall } from "../../lib/snippets.ts";
import type { GalleryCard, Item, ItemPage } from "../../lib/types.ts";
import { AddItems } from "./add.tsx";
import { galleriesChanged } from "./changes.ts";
import { Grid } from "./grid.tsx";
import { ItemDialog } from "./item.tsx";
import { job } from "./job.ts";
import { DeleteGallery } from "./remove.tsx";
import { contents, INDEX_WORDS, items as itemsInWords } from "./words.ts";

const PAGE = 100;

/** What is in one gallery, and what is added to it. */
export function GalleryPage({ name }: { name: string }) {
  const listed = galleries.value.find((card) => card.name === name);
  const [read, setRead] = useState<GalleryCard | null>(null);
  const [missing, setMissing] = useState("");
  const [deleting, setDeleting] = useState(false);
  const card = listed ?? read;

  useEffect(() => {
    const controller = new AbortController();
    get<GalleryCard>(`/galleries/${part(name)}`, { signal: controller.signal }).then(setRead, (error: unknown) => {
      if (controller.signal.aborted) return;
      const gone = error instanceof ApiError && error.status === 404;
      setMissing(gone ? `There is no gallery “${name}”.` : messageOf(error));
    });
    return () => controller.abort();
  }, [name]);

  const search = () => {
    searched.value = name;
    go("search");
  };
  return (
    <div class="stack">
      <div>
        <p class="galleries-trail">
          <a href={link("galleries")}>← All galleries</a>
        </p>
        <div class="row spread">
          <h1 class="galleries-name">{name}</h1>
          {card && (
            <span class="row">
              <button type="button" onClick={search} disabled={card.items === 0}>
                Search this gallery
              </button>
              <button type="button" class="quiet galleries-delete" onClick={() => setDeleting(true)}>
                Delete gallery …
              </button>
            </span>
          )}
        </div>
        {card ? (
          <Facts card={card} />
        ) : (
          <p class="muted" role="status">
            {missing || "Reading …"} {missing && <a href={link("galleries")}>Back to all galleries</a>}
          </p>
        )}
      </div>
      {card && <AddItems card={card} />}
      {card && <Items card={card} />}
      {card && deleting && <DeleteGallery card={card} close={() => setDeleting(false)} />}
    </div>
  );
}

function Facts({ card }: { card: GalleryCard }) {
  const kind = String(card.index.kind ?? "");
  return (
    <>
      <p class="muted galleries-facts">
        <span>
          <b>{itemsInWords(card.items)}</b>
        </span>
        {card.items > 0 && <span>{contents(card)}</span>}
        <span title={INDEX_WORDS[kind]}>{kind} index</span>
        <span>{card.calibration ? `completed by “${card.calibration}”` : "no calibration"}</span>
        <span title={new Date(card.created_at * 1000).toLocaleString()}>created {ago(card.created_at)}</span>
        {card.status === "ready" && (
          <span class="galleries-fits">
            <Badge kind="ok" title="Its vectors come from the encoder that this server runs, so it can be searched">
              made by this encoder
            </Badge>
          </span>
        )}
      </p>
      {card.status === "refused" && (
        <p class="galleries-why" role="alert">
          <b>It cannot be searched or added to.</b> {card.why}
        </p>
      )}
    </>
  );
}

function Items({ card }: { card: GalleryCard }) {
  const [start, setStart] = useState(0);
  const [page, setPage] = useState<{ start: number; items: Item[]; total: number } | null>(null);
  const [failed, setFailed] = useState("");
  const [tries, setTries] = useState(0);
  const [selected, setSelected] = useState<ReadonlySet<string>>(new Set());
  const [open, setOpen] = useState<Item | null>(null);
  const heading = useRef<HTMLHeadingElement>(null);

  useEffect(() => {
    const controller = new AbortController();
    get<ItemPage>(`/galleries/${part(card.name)}/items?offset=${start}&limit=${PAGE}`, {
      signal: controller.signal,
    }).then(
      ({ items, total }) => {
        setFailed("");
        // The last of a page's items were deleted: the page before is the last one now.
        if (items.length === 0 && start > 0) setStart(Math.max(0, Math.floor((total - 1) / PAGE) * PAGE));
        else setPage({ start, items, total });
      },
      (error: unknown) => {
        if (!controller.signal.aborted) setFailed(messageOf(error));
      },
    );
    return () => controller.abort();
  }, [card.name, card.generation, start, tries]);

  const turn = (to: number) => {
    setStart(to);
    heading.current?.focus();
  };
  const choose = (id: string, on: boolean) => {
    const next = new Set(selected);
    if (on) next.add(id);
    else next.delete(id);
    setSelected(next);
  };
  const removeItems = async (ids: string[]) => {
    const what = ids.length === 1 ? `“${ids[0]}”` : itemsInWords(ids.length);
    const lost = ids.length === 1 ? "It is" : "They are";
    if (!(await confirmed(`Delete ${what}?`, `${lost} found no more. This cannot be taken back.`, "Delete"))) return;
    setOpen(null);
    const ok = await tell(async () => say(`Deleted ${itemsInWords(await deleteItems(card.name, ids))}`));
    if (ok) setSelected(new Set([...selected].filter((id) => !ids.includes(id))));
    await galleriesChanged();
    heading.current?.focus();
  };

  if (failed && !page) {
    return (
      <p class="card" role="alert">
        The items could not be read: {failed}.{" "}
        <button type="button" onClick={() => setTries(tries + 1)}>
          Try again
        </button>
      </p>
    );
  }
  const items = page?.items ?? [];
  const total = page?.total ?? 0;
  const last = page ? page.start + items.length : 0;
  const everyChosen = items.length > 0 && items.every((item) => selected.has(item.id));
  return (
    <section class="card" aria-busy={page?.start !== start}>
      <div class="card-head">
        <h2 ref={heading} tabIndex={-1}>
          Items{" "}
          {page && total > PAGE && (
            <span class="muted galleries-range">
              {count(page.start + 1)}–{count(last)} of {count(total)}
            </span>
          )}
        </h2>
        {total > PAGE && (
          <span class="row">
            <button type="button" disabled={start === 0} onClick={() => turn(Math.max(0, start - PAGE))}>
              ← Previous
            </button>
            <button type="button" disabled={start + PAGE >= total} onClick={() => turn(start + PAGE)}>
              Next →
            </button>
          </span>
        )}
      </div>
      {failed && (
        <p role="alert" class="c-bad">
          {failed}{" "}
          <button type="button" class="quiet" onClick={() => setTries(tries + 1)}>
            Try again
          </button>
        </p>
      )}
      {page && total === 0 && job.value?.gallery !== card.name && (
        <p class="empty">Nothing is in it yet. Drop pictures above, or choose files.</p>
      )}
      {items.length > 0 && (
        <div class="galleries-selection row">
          <label class="galleries-check">
            <input
              type="checkbox"
              checked={everyChosen}
              onChange={(event) => {
                const next = new Set(selected);
                for (const { id } of items) event.currentTarget.checked ? next.add(id) : next.delete(id);
                setSelected(next);
              }}
            />
            Select all {items.length < total ? "of this page" : ""}
          </label>
          <span role="status" class="muted">
            {selected.size > 0 && `${count(selected.size)} selected`}
          </span>
          {selected.size > 0 && (
            <>
              <button type="button" class="quiet" onClick={() => setSelected(new Set())}>
                Clear
              </button>
              <button type="button" class="galleries-delete" onClick={() => void removeItems([...selected])}>
                Delete selected …
              </button>
            </>
          )}
        </div>
      )}
      <Grid items={items} selected={selected} choose={choose} open={setOpen} />
      {open && (
        <ItemDialog
          gallery={card.name}
          item={open}
          close={() => setOpen(null)}
          remove={() => void removeItems([open.id])}
        />
      )}
    </section>
  );
}

/** How many there were. As many requests as the server's limit asks for. */
async function deleteItems(gallery: string, ids: readonly string[]): Promise<number> {
  const most = config.value?.limits.items ?? 100;
  let deleted = 0;
  for (let start = 0; start < ids.length; start += most) {
    const some = ids.slice(start, start + most);
    const answer = await post<{ deleted: number }>(
      `/galleries/${part(gallery)}/items/delete`,
      { ids: some },
      {
        remember: true,
        python: pythonCall("client.delete_items", [gallery, some]),
      },
    );
    deleted += answer.deleted;
  }
  return deleted;
}
