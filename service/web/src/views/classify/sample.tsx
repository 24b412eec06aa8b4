import { useEffect, useState } from "preact/hooks";
import { Drop } from "../../components/drop.tsx";
import { Segments } from "../../components/fields.tsx";
import { Preview } from "../../components/preview.tsx";
import { words as spaced } from "../../lib/format.ts";
import { prepared, save } from "../../lib/pictures.ts";
import { config, gallery, models, tell } from "../../lib/state.ts";
import { whyNever } from "./devices.ts";
import { CorruptionFields, Hear, Wave } from "./parts.tsx";
import type { Medium } from "./run.ts";
import { bytesOf, heardSeconds, preparedSound } from "./sound.ts";
import {
  askSoon,
  asTexts,
  capture,
  choose,
  clips,
  CLIPS,
  clipsStart,
  clipsTrouble,
  corrupting,
  corruption,
  corruptionsTrouble,
  deviceTroubles,
  dropped,
  fileName,
  from,
  going,
  goLive,
  hasClassifier,
  loadClips,
  loadCorruptions,
  loadPictures,
  opening,
  pictures,
  picturesStart,
  picturesTrouble,
  playClips,
  sample,
  sampleOf,
  sampleOfItem,
  sent,
  sequence,
  stopLive,
  stopSequence,
  waiting,
  wanted,
  type From,
  type Sample,
} from "./state.ts";

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
      {shown === "live" && <Live />}
      <Halves />
    </section>
  );
}

// Demo clips -------------------------------------------------------------------------------------------------------

const PLAYED = 24;

function Clips() {
  useEffect(() => {
    if (clips.value.length === 0) void loadClips(0);
  }, []);
  const playing = going.value && sequence.value?.kind === "clips";
  if (clipsTrouble.value) {
    return (
      <p role="alert" class="classify-trouble">
        {clipsTrouble.value}{" "}
        <button type="button" onClick={() => void loadClips(clipsStart.value)}>
          Try again
        </button>
      </p>
    );
  }
  return (
    <div class="classify-clips">
      <p class="hint">
        Drawn and synthesised, so the right label is known. Choose one, or play {PLAYED} one after the other.
      </p>
      <ul class="classify-strip" aria-label="Demo clips">
        {clips.value.map((clip) => (
          <li key={clip.id}>
            <button
              type="button"
              aria-label={`${clip.id}: ${clip.label}`}
              title={clip.label}
              aria-pressed={sample.value?.name === clip.id}
              onClick={() => void tell(async () => choose(await sampleOf(clip)))}
            >
              <span aria-hidden="true">
                <Preview path={clip.image} text={clip.label} />
              </span>
            </button>
          </li>
        ))}
      </ul>
      <div class="row">
        {playing ? (
          <button type="button" class="primary" onClick={stopSequence}>
            Stop
          </button>
        ) : (
          <button
            type="button"
            class="primary"
            disabled={clips.value.length === 0}
            onClick={() => void playClips(PLAYED)}
          >
            Play {PLAYED} clips
          </button>
        )}
        <button type="button" disabled={playing} onClick={() => void loadClips(clipsStart.value + CLIPS)}>
          Other clips
        </button>
        {waiting.value && <small>{waiting.value}</small>}
      </div>
    </div>
  );
}

function Pictures() {
  const name = gallery.value;
  useEffect(() => void loadPictures(0), [name]);
  if (picturesTrouble.value) {
    return (
      <p role="alert" class="classify-trouble">
        {picturesTrouble.value}{" "}
        <button type="button" onClick={() => void loadPictures(picturesStart.value)}>
          Try again
        </button>
      </p>
    );
  }
  return (
    <div class="classify-clips">
      <p class="hint">
        {pictures.value.length > 0
          ? `Pictures of gallery ${name}. Choose one, and it is matched with your labels.`
          : `Gallery ${name} shows no pictures here; take a file.`}
      </p>
      <ul class="classify-strip" aria-label="Pictures of the gallery">
        {pictures.value.map((item) => (
          <li key={item.id}>
            <button
              type="button"
              aria-label={item.text ?? item.id}
              title={item.text ?? item.id}
              aria-pressed={sample.value?.name === item.id}
              onClick={() => void tell(async () => choose(await sampleOfItem(item)))}
            >
              <span aria-hidden="true">
                <Preview path={item.preview} text={item.id} />
              </span>
            </button>
          </li>
        ))}
      </ul>
      <div class="row">
        <button type="button" onClick={() => void loadPictures(picturesStart.value + CLIPS)}>
          Other pictures
        </button>
      </div>
    </div>
  );
}

// Files ------------------------------------------------------------------------------------------------------------

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

function Files() {
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
          {(["audio", "image"] as const).map(
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

// Camera and microphone --------------------------------------------------------------------------------------------

function Live() {
  useEffect(() => stopLive, []);
  const never = whyNever(window.isSecureContext, typeof navigator.mediaDevices?.getUserMedia === "function");
  const open = capture.value;
  const { camera, microphone } = wanted.value;
  const seconds = heardSeconds(models.value?.classifier?.audio.frames).toFixed(1);
  const noSound = asTexts.value;
  if (never) return <p class="classify-note">{never} Demo clips and files work here.</p>;
  return (
    <div class="classify-live">
      <p class="hint">
        {noSound
          ? "Once a second a frame is asked about. It goes to this server only."
          : `Once a second a frame and the last ${seconds} s of sound are asked about. They go to this server only.`}
      </p>
      <div class="row">
        {open || opening.value ? (
          <button type="button" class="primary" onClick={stopLive}>
            Stop
          </button>
        ) : (
          <button type="button" class="primary" disabled={!camera && !microphone} onClick={() => void goLive()}>
            Start
          </button>
        )}
        <label class="classify-check">
          <input
            type="checkbox"
            checked={camera}
            disabled={open !== null}
            onChange={(event) => (wanted.value = { ...wanted.value, camera: event.currentTarget.checked })}
          />{" "}
          Camera
        </label>
        <label class="classify-check">
          <input
            type="checkbox"
            checked={microphone}
            disabled={open !== null}
            onChange={(event) => (wanted.value = { ...wanted.value, microphone: event.currentTarget.checked })}
          />{" "}
          Microphone
        </label>
        <small role="status">
          {opening.value
            ? "The browser asks you whether it may …"
            : open
              ? waiting.value || "Camera and microphone are in use."
              : ""}
        </small>
      </div>
      {deviceTroubles.value.length > 0 && (
        <ul role="alert" class="classify-trouble">
          {deviceTroubles.value.map((why) => (
            <li key={why}>{why}</li>
          ))}
        </ul>
      )}
      {open?.has("camera") && (
        <video
          ref={(video) => open.watch(video)}
          class="classify-view"
          muted
          playsInline
          aria-label="What the camera sees"
        />
      )}
    </div>
  );
}

// What is sent -----------------------------------------------------------------------------------------------------

function Halves() {
  if (corruptionsTrouble.value) {
    return (
      <p role="alert" class="hint">
        Nothing can be corrupted here: {corruptionsTrouble.value}{" "}
        <button type="button" onClick={() => void loadCorruptions()}>
          Try again
        </button>
      </p>
    );
  }
  return (
    <div class="classify-halves" role="group" aria-label="What is sent" aria-busy={corrupting.value}>
      {hasClassifier.value && !asTexts.value && <Half medium="audio" title="Sound" />}
      <Half medium="image" title="Picture" />
    </div>
  );
}

function Half(props: { medium: Medium; title: string }) {
  const { medium, title } = props;
  const word = title.toLowerCase();
  const has = sample.value?.content[medium] !== undefined;
  const out = dropped.value[medium];
  const uri = out ? undefined : (sent.value ?? sample.value?.content)?.[medium];
  const how = corruption.value[medium];
  return (
    <section class="classify-half" aria-label={title}>
      <div class="row spread">
        <h3>{title}</h3>
        <label class="classify-check">
          <input
            type="checkbox"
            checked={out}
            onChange={(event) => {
              dropped.value = { ...dropped.value, [medium]: event.currentTarget.checked };
              void askSoon();
            }}
          />{" "}
          No {word}
        </label>
      </div>
      <div class={`classify-shown classify-${medium}`}>
        {uri === undefined && (
          <p class="muted">
            {out
              ? `The ${word} is left out.`
              : has
                ? ""
                : sample.value
                  ? `This sample has no ${word}.`
                  : `No ${word} yet`}
          </p>
        )}
        {uri !== undefined && medium === "audio" && <Wave uri={uri} label="The sound as it is sent" />}
        {uri !== undefined && medium === "image" && (
          <img
            src={uri}
            alt={how ? `The picture with ${spaced(how.name)}, severity ${how.severity}` : "The picture as it is sent"}
          />
        )}
      </div>
      <div class="row classify-tools">
        {uri !== undefined && medium === "audio" && <Hear uri={uri} label="Hear the sound as it is sent" />}
        {uri !== undefined && sample.value && (
          <SaveButton uri={uri} name={fileName(sample.value, medium, uri)} word={word} />
        )}
      </div>
      <CorruptionFields
        medium={medium}
        label={`Corrupt the ${word}`}
        value={how}
        disabled={out}
        change={(value) => {
          corruption.value = { ...corruption.value, [medium]: value };
          void askSoon();
        }}
      />
    </section>
  );
}

function SaveButton(props: { uri: string; name: string; word: string }) {
  const [busy, setBusy] = useState(false);
  const keep = async () => {
    setBusy(true);
    await tell(async () =>
      save(new Blob([bytesOf(props.uri)], { type: props.uri.slice(5, props.uri.indexOf(";")) }), props.name),
    );
    setBusy(false);
  };
  return (
    <button
      type="button"
      class="quiet"
      disabled={busy}
      aria-label={`Save the ${props.word} as it is sent`}
      onClick={() => void keep()}
    >
      Save
    </button>
  );
}
