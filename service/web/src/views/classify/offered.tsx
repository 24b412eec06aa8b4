import { useEffect } from "preact/hooks";
import { Preview } from "../../components/preview.tsx";
import { Trouble } from "../../components/trouble.tsx";
import { gallery, tell } from "../../lib/state.ts";
import { choose } from "./choose.ts";
import {
  clips,
  CLIPS,
  clipsStart,
  clipsTrouble,
  loadClips,
  loadPictures,
  pictures,
  picturesStart,
  picturesTrouble,
  sampleOf,
  sampleOfItem,
} from "./clips.ts";
import { playClips, stopSequence } from "./sequence.ts";
import { going, sample, sequence, waiting, type Sample } from "./state.ts";

const PLAYED = 24;

/** Clips of the demo. */
export function Clips() {
  useEffect(() => {
    if (clips.value.length === 0) void loadClips(0);
  }, []);
  const playing = going.value && sequence.value?.kind === "clips";
  if (clipsTrouble.value) {
    return <Trouble again={() => void loadClips(clipsStart.value)}>{clipsTrouble.value}</Trouble>;
  }
  return (
    <div class="classify-clips">
      <p class="hint">
        Drawn and synthesised, so the right label is known. Choose one, or play {PLAYED} one after the other.
      </p>
      <Strip
        label="Demo clips"
        items={clips.value.map((clip) => ({
          name: clip.id,
          label: `${clip.id}: ${clip.label}`,
          title: clip.label,
          path: clip.image,
          sample: () => sampleOf(clip),
        }))}
      />
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

/** Pictures of the gallery. */
export function Pictures() {
  const name = gallery.value;
  useEffect(() => void loadPictures(0), [name]);
  if (picturesTrouble.value) {
    return <Trouble again={() => void loadPictures(picturesStart.value)}>{picturesTrouble.value}</Trouble>;
  }
  return (
    <div class="classify-clips">
      <p class="hint">
        {pictures.value.length > 0
          ? `Pictures of gallery ${name}. Choose one, and it is matched with your labels.`
          : `Gallery ${name} shows no pictures here; take a file.`}
      </p>
      <Strip
        label="Pictures of the gallery"
        items={pictures.value.map((item) => ({
          name: item.id,
          label: item.text ?? item.id,
          title: item.text ?? item.id,
          path: item.preview,
          sample: () => sampleOfItem(item),
        }))}
      />
      <div class="row">
        <button type="button" onClick={() => void loadPictures(picturesStart.value + CLIPS)}>
          Other pictures
        </button>
      </div>
    </div>
  );
}

interface Offered {
  name: string;
  label: string;
  title: string;
  /** Of its picture. */
  path: string;
  sample: () => Promise<Sample>;
}

function Strip(props: { label: string; items: readonly Offered[] }) {
  return (
    <ul class="classify-strip" aria-label={props.label}>
      {props.items.map((one) => (
        <li key={one.name}>
          <button
            type="button"
            aria-label={one.label}
            title={one.title}
            aria-pressed={sample.value?.name === one.name}
            onClick={() => void tell(async () => choose(await one.sample()))}
          >
            <span aria-hidden="true">
              <Preview path={one.path} text={one.title} />
            </span>
          </button>
        </li>
      ))}
    </ul>
  );
}
