import "./search.css";
import { useEffect } from "preact/hooks";
import { corruptions, loadCorruptions } from "../../lib/corruptions.ts";
import { gallery, searchFor } from "../../lib/state.ts";
import type { Modality } from "../../lib/types.ts";
import { CorruptCard } from "./corrupt.tsx";
import { QueryCard } from "./query.tsx";
import { Results } from "./results.tsx";
import { RUN_CARD, SearchRunCard } from "./run-card.tsx";
import { kind, planned, runner } from "./run.ts";
import { enterGallery } from "./samples.ts";
import { corruption } from "./state.ts";

/** Take what is done to the query for the stream, and go there. */
function sendSuch(of: Modality): void {
  if (!runner.going) {
    kind.value = of;
    planned.value = { ...planned.value, [of]: corruption.value[of] };
  }
  document.getElementById(RUN_CARD)?.scrollIntoView({ behavior: "smooth" });
  document.getElementById(`${RUN_CARD}-title`)?.focus({ preventScroll: true });
}

export function SearchView() {
  const name = gallery.value;
  useEffect(() => {
    runner.trouble.value = "";
    if (name) void enterGallery();
  }, [name, searchFor.value]);
  useEffect(() => {
    if (!corruptions.value) void loadCorruptions();
  }, []);
  return (
    <div class="stack">
      <div>
        <h1>Search</h1>
        <p class="muted search-lead">
          One query, two answers: from the frozen source model, and from a stream that learns from its queries while it
          serves.
        </p>
      </div>
      <div class="search-top">
        <QueryCard />
        <CorruptCard send={sendSuch} />
      </div>
      <Results />
      <SearchRunCard />
    </div>
  );
}
