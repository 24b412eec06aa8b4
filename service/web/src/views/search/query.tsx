import { useState } from "preact/hooks";
import { Drop } from "../../components/drop.tsx";
import { Segments, Select } from "../../components/fields.tsx";
import { LearningFields } from "../../components/learning-fields.tsx";
import { Preview } from "../../components/preview.tsx";
import { prepared } from "../../lib/pictures.ts";
import { link } from "../../lib/router.ts";
import { config, demoEncoder, galleries, gallery, models, say, tell } from "../../lib/state.ts";
import type { Item, Target } from "../../lib/types.ts";
import { methodChoices } from "./methods.ts";
import {
  loadSamples,
  samples,
  samplesTotal,
  samplesTrouble,
  SAMPLES,
  type,
  usePicture,
  useSample,
  type Taken,
} from "./samples.ts";
import { search } from "./search.ts";
import { caption, k, mode, picture, target, truth } from "./state.ts";

async function takeFile(file: File): Promise<void> {
  const uri = await prepared(file, config.value?.limits.image_bytes ?? 20 << 20);
  const kept = file.name || "query.png";
  usePicture({ uri, name: kept });
  const what = caption.value.trim() ? "The picture and the words are the query now" : "The picture is the query now";
  say(demoEncoder.value ? `${what}. The demo encoder knows drawn scenes, and photographs hardly.` : what);
}

/** What is asked, and of whom. */
export function QueryCard() {
  return (
    <section class="card search-query" aria-labelledby="search-query">
      <h2 id="search-query">Ask</h2>
      <form
        role="search"
        class="search-ask"
        onSubmit={(event) => {
          event.preventDefault();
          void search();
        }}
      >
        <input
          type="search"
          aria-label="What to look for"
          placeholder="Describe what to look for"
          autocomplete="off"
          enterkeyhint="search"
          maxLength={config.value?.limits.text_characters ?? 10_000}
          value={caption.value}
          onInput={(event) => type(event.currentTarget.value)}
          onPaste={(event) => {
            const file = event.clipboardData?.files[0];
            if (!file) return;
            event.preventDefault();
            void tell(() => takeFile(file));
          }}
        />
        <button type="submit" class="primary" disabled={!caption.value.trim() && !picture.value}>
          Search
        </button>
      </form>
      <div class="search-givers">
        <PictureField />
        <Samples />
      </div>
      <Options />
    </section>
  );
}

function PictureField() {
  const held = picture.value;
  return (
    <Drop
      class="search-drop"
      label={held ? "Replace" : "Choose a picture"}
      accept="image/*"
      files={([file]) => file && void tell(() => takeFile(file))}
    >
      {held ? (
        <>
          <img src={held.uri} alt="The picture that is asked with" class="search-held" />
          <span class="search-held-name">
            <span>{held.name}</span>
            {caption.value.trim() && <small>and the words: one query</small>}
          </span>
          <button type="button" onClick={() => usePicture(null)}>
            Remove
          </button>
        </>
      ) : (
        <span class="muted">Drop or paste a picture, alone or with words</span>
      )}
    </Drop>
  );
}

function Samples() {
  const [taken, setTaken] = useState<Taken>("words");
  const items = samples.value;
  const usable = (item: Item) => (taken === "words" ? Boolean(item.text) : Boolean(item.preview));
  const many = samplesTotal.value > SAMPLES;
  return (
    <div class="search-samples">
      <div class="row spread">
        <h3 id="search-samples">Or ask with a sample's</h3>
        <Segments
          label="Ask with a sample's"
          value={taken}
          change={setTaken}
          choices={[
            { value: "words", label: "words" },
            { value: "picture", label: "picture" },
          ]}
        />
        <span class="grow" />
        {many && (
          <button type="button" class="quiet" onClick={() => void loadSamples("next")}>
            More
          </button>
        )}
        {many && (
          <button type="button" class="quiet" onClick={() => void loadSamples("anywhere")}>
            Shuffle
          </button>
        )}
      </div>
      {samplesTrouble.value && (
        <p role="alert">
          {samplesTrouble.value}{" "}
          <button type="button" onClick={() => void loadSamples("start")}>
            Try again
          </button>
        </p>
      )}
      {items.length === 0 && !samplesTrouble.value && gallery.value && (
        <p class="hint">
          This gallery is empty. <a href={link("galleries", gallery.value)}>Add items</a> to search it.
        </p>
      )}
      <ul class="search-strip" aria-labelledby="search-samples">
        {items.map((item) => (
          <li key={item.id}>
            <button
              type="button"
              disabled={!usable(item)}
              aria-pressed={truth.value === item.id}
              title={item.text ?? item.id}
              aria-label={`${taken === "words" ? "Words" : "Picture"} of ${item.id}${item.text ? `: ${item.text}` : ""}`}
              onClick={() => void tell(() => useSample(item, taken))}
            >
              <span aria-hidden="true">
                <Preview {...(item.preview ? { path: item.preview } : {})} text={item.text ?? item.id} />
              </span>
            </button>
          </li>
        ))}
      </ul>
    </div>
  );
}

function Options() {
  const card = galleries.value.find((one) => one.name === gallery.value);
  const targets: Target[] = ["auto", ...(Object.keys(card?.targets ?? {}) as Target[])];
  const most = Math.min(50, config.value?.limits.k ?? 50);
  const sizes = [3, 5, 8, 10, 20, 50].filter((size) => size <= most);
  return (
    <div class="search-options">
      <Select
        label="Gallery"
        value={gallery.value}
        choices={galleries.value.map((one) => one.name)}
        change={(name) => (gallery.value = name)}
      />
      <LearningFields
        task="retrieve"
        methods={methodChoices(models.value)}
        mode={mode}
        ask={() => void search()}
        relearn={() => void search()}
      />
      <Select
        label="Look among"
        value={target.value}
        change={(value) => {
          target.value = value;
          void search();
        }}
        choices={targets.map((value) => ({ value, label: TARGETS[value] }))}
      />
      <Select
        label="Hits"
        value={String(k.value)}
        choices={sizes.map(String)}
        change={(value) => {
          k.value = Number(value);
          void search();
        }}
      />
    </div>
  );
}

const TARGETS: Record<Target, string> = { auto: "auto", image: "pictures", text: "texts", anchor: "anchors of both" };
