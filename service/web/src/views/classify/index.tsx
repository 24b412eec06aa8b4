import "./classify.css";
import { useEffect } from "preact/hooks";
import { corruptions, loadCorruptions } from "../../lib/corruptions.ts";
import { config, models } from "../../lib/state.ts";
import { AnswerCard } from "./answer.tsx";
import { ClassifyRunCard } from "./run-card.tsx";
import { SampleCard } from "./sample.tsx";

export function ClassifyView() {
  useEffect(() => {
    if (!corruptions.value) void loadCorruptions();
  }, []);
  const clips = config.value?.demo.clips && models.value?.classifier;
  return (
    <div class="stack">
      <div>
        <h1>Classify</h1>
        <p class="muted classify-lead">
          What is heard and seen? The frozen source model answers beside a stream that learns from its samples while it
          serves.
        </p>
      </div>
      <div class="classify-top">
        <SampleCard />
        <AnswerCard />
      </div>
      {clips && <ClassifyRunCard />}
    </div>
  );
}
