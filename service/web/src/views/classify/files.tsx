import { Drop } from "../../components/drop.tsx";
import { prepared } from "../../lib/pictures.ts";
import { config, models, tell } from "../../lib/state.ts";
import { choose } from "./choose.ts";
import { MEDIA, type Medium } from "./send.ts";
import { heardSeconds, preparedSound } from "./sound.ts";
import { asTexts, sample, type Sample } from "./state.ts";

const SOUND_NAME = /\.(wav|flac|ogg|oga|opus|mp3|m4a|aac)$/i;
const isSound = (file: File): boolean =>
  file.type.startsWith("audio/") || (!file.type.startsWith("image/") && SOUND_NAME.test(file.name));

/** Files take the place of what the sample had of their kind; of other files as well. */
async function takeFiles(files: File[]): Promise<void> {
  const limits = config.value?.limits;
  const before = sample.value?.from === "files" ? sample.value : null;
  const made: Sample = {
    name: "",
    from: "files",
    content: { ...before?.content },
    files: { ...before?.files },
    truth: null,
  };
  for (const file of files) {
    const medium: Medium = isSound(file) ? "audio" : "image";
    try {
      made.content[medium] =
        medium === "audio"
          ? await preparedSound(file, { bytes: limits?.audio_bytes ?? 32 << 20, seconds: limits?.audio_seconds ?? 60 })
          : await prepared(file, limits?.image_bytes ?? 20 << 20);
    } catch (error) {
      throw new Error(`${file.name}: ${(error as Error).message}`);
    }
    made.files[medium] = file.name || medium;
  }
  made.name = Object.values(made.files).join(" and ");
  choose(made);
}

/** Pictures and sounds of the person at the page. */
export function Files() {
  const held = sample.value?.from === "files" ? sample.value : null;
  const remove = (medium: Medium) => {
    if (!held) return;
    const { [medium]: _, ...content } = held.content;
    const { [medium]: __, ...files } = held.files;
    choose(Object.keys(content).length > 0 ? { ...held, content, files } : null);
  };
  return (
    <div class="classify-files">
      <Drop
        class="classify-drop"
        label={held ? "Other files" : "Choose files"}
        accept="image/*,audio/*"
        multiple
        files={(files) => void tell(() => takeFiles(files))}
      >
        <span class="muted">
          {asTexts.value ? "Drop or paste a picture" : "Drop a picture, a sound, or one of each"}
        </span>
      </Drop>
      {held && (
        <p class="row">
          {MEDIA.map(
            (medium) =>
              held.files[medium] && (
                <button
                  key={medium}
                  type="button"
                  class="classify-held"
                  onClick={() => remove(medium)}
                  aria-label={`Remove ${held.files[medium]}`}
                >
                  {held.files[medium]} <span aria-hidden="true">✕</span>
                </button>
              ),
          )}
        </p>
      )}
      {!asTexts.value && (
        <p class="hint">
          The model listens to the first {heardSeconds(models.value?.classifier?.audio.frames).toFixed(1)} s.
          {models.value?.classifier && ` It knows: ${knows(models.value.classifier.labels)}.`}
        </p>
      )}
    </div>
  );
}

const knows = (labels: readonly string[]): string =>
  labels.length <= 12 ? labels.join(", ") : `${labels.slice(0, 10).join(", ")} and ${labels.length - 10} more`;
