import "./search.css";
import { useEffect } from "preact/hooks";
import { gallery, searchFor } from "../../lib/state.ts";
import type { Modality } from "../../lib/types.ts";
import { CorruptCard } from "./corrupt.tsx";
import { DriftCard } from "./drift-card.tsx";
import { QueryCard } from "./query.tsx";
import { Results } from "./results.tsx";
import { kind, planned, run, startTrouble } from "./run.ts";
import { corruption, corruptions, enterGallery, loadCorruptions } from "./state.ts";

/** Take what is done to the query for the stream, and go there. */
function sendSuch(of: Modality): void {
  if (run.value?.phase !== "running") {
    kind.value = of;
    planned.value = { ...planned.value, [of]: corruption.value[of] };
  }
  document.getElementById("search-drift")?.scrollIntoView({ behavior: "smooth" });
  document.getElementById("search-drift-title")?.focus({ preventScroll: true });
}

export function SearchView() {
  const name = gallery.value;
  useEffect(() => {
    startTrouble.value = "";
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
      <DriftCard />
    </div>
  );
}
