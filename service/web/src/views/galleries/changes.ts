// Galleries that change here are read again, by this page and by others of the same browser.

import { loadGalleries } from "../../lib/state.ts";

const others = new BroadcastChannel("attune-galleries");

const reload = (): Promise<void> => loadGalleries().catch(() => undefined);

others.onmessage = () => void reload();

export async function galleriesChanged(): Promise<void> {
  others.postMessage(null);
  await reload();
}
