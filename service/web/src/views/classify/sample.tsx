import { Segments } from "../../components/fields.tsx";
import { config, gallery } from "../../lib/state.ts";
import { Camera } from "./camera.tsx";
import { Files } from "./files.tsx";
import { Clips, Pictures } from "./offered.tsx";
import { stopLive } from "./live.ts";
import { Sent } from "./sent.tsx";
import { stopSequence } from "./sequence.ts";
import { asTexts, from, type From } from "./state.ts";

const SOURCES: { value: From; label: string }[] = [
  { value: "clips", label: "Demo clips" },
  { value: "pictures", label: "Gallery" },
  { value: "files", label: "Files" },
  { value: "live", label: "Camera & mic" },
];

/** Demo clips are for the classifier, pictures of the gallery for labels as texts. */
function offered(value: From): boolean {
  if (value === "clips") return !asTexts.value && Boolean(config.value?.demo.clips);
  return value !== "pictures" || (asTexts.value && gallery.value !== "");
}

/** What is asked about, and what is done to it before. */
export function SampleCard() {
  const choices = SOURCES.filter((one) => offered(one.value));
  const shown = choices.some((one) => one.value === from.value) ? from.value : choices[0]!.value;
  return (
    <section class="card classify-sample" aria-labelledby="classify-sample">
      <div class="card-head">
        <h2 id="classify-sample">Sample</h2>
        <Segments
          label="Where samples come from"
          value={shown}
          choices={choices}
          change={(value) => {
            stopSequence();
            stopLive();
            from.value = value;
          }}
        />
      </div>
      {shown === "clips" && <Clips />}
      {shown === "pictures" && <Pictures />}
      {shown === "files" && <Files />}
      {shown === "live" && <Camera />}
      <Sent />
    </section>
  );
}
