import { useEffect, useRef } from "preact/hooks";
import { Confirmation } from "./components/dialog.tsx";
import { Badge } from "./components/fields.tsx";
import { KeyButton, KeyDialog } from "./components/keys.tsx";
import { CopyAs } from "./components/snippet.tsx";
import { ThemeButton } from "./components/theme.tsx";
import { Toasts } from "./components/toast.tsx";
import { link, route } from "./lib/router.ts";
import { config, connection, doubt, models, refusal, retryNow, server, unlock } from "./lib/state.ts";
import { ClassifyView } from "./views/classify/index.tsx";
import { GalleriesView } from "./views/galleries/index.tsx";
import { SearchView } from "./views/search/index.tsx";
import { StreamsView } from "./views/streams/index.tsx";

const VIEWS = [
  { name: "search", title: "Search", View: SearchView },
  { name: "streams", title: "Streams", View: StreamsView },
  { name: "classify", title: "Classify", View: ClassifyView },
  { name: "galleries", title: "Galleries", View: GalleriesView },
] as const;

export function App() {
  const [name = "search"] = route.value;
  const view = VIEWS.find((one) => one.name === name) ?? VIEWS[0];
  const main = useRef<HTMLElement>(null);
  const first = useRef(true);
  useEffect(() => {
    document.title = `${view.title} · Attune`;
    // Whoever follows a link with the keyboard or a screen reader is taken to what it shows.
    if (!first.current) {
      window.scrollTo(0, 0);
      main.current?.focus({ preventScroll: true });
    }
    first.current = false;
  }, [route.value.join("/")]);
  return (
    <>
      <a
        class="skip"
        href="#main"
        onClick={(event) => {
          event.preventDefault();
          main.current?.focus();
        }}
      >
        To the content
      </a>
      <header class="top">
        <a class="brand" href={link("search")} aria-label="Attune">
          <svg viewBox="0 0 32 32" width="26" height="26" aria-hidden="true">
            <rect width="32" height="32" rx="8" class="brand-back" />
            <path d="M5 21c4 0 4-10 8-10s4 10 8 10" class="brand-wave" />
            <path d="M11 16h5.500c4 0 4-5 10.500-5" class="brand-line" />
          </svg>
          <span>Attune</span>
        </a>
        <nav aria-label="Views">
          {VIEWS.map((one) => (
            <a key={one.name} href={link(one.name)} aria-current={one === view ? "page" : undefined}>
              {one.title}
            </a>
          ))}
          <a href="/docs">API</a>
        </nav>
        <div class="top-end">
          <Status />
          <KeyButton />
          <ThemeButton />
        </div>
      </header>
      <main ref={main} id="main" tabIndex={-1}>
        <view.View />
      </main>
      <footer class="bottom">
        <span>
          Attune {config.value?.version ?? ""}
          {models.value && ` · ${models.value.encoder.name} on ${models.value.encoder.device}`}
        </span>
        <CopyAs />
      </footer>
      <Toasts />
      <Confirmation />
      <KeyDialog />
    </>
  );
}

function Status() {
  const state = connection.value;
  const queue = server.value?.queue;
  if (state === "locked") {
    return (
      <button type="button" class="badge off" onClick={() => void unlock()}>
        locked: enter the admin key
      </button>
    );
  }
  return (
    <span class="status" role="status">
      {state === "live" && !doubt.value && <Badge kind="ok">{queue ? `live · queue ${queue.items}` : "live"}</Badge>}
      {state === "live" && doubt.value && (
        <Badge kind="warn" title={doubt.value}>
          {doubt.value}
        </Badge>
      )}
      {state === "connecting" && <Badge kind="busy">connecting …</Badge>}
      {state === "lost" && (
        <button type="button" class="badge bad" onClick={retryNow}>
          {refusal.value || "connection lost"}, trying again …
        </button>
      )}
    </span>
  );
}
