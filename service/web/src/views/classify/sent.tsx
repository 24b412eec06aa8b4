import { useState } from "preact/hooks";
import { CorruptionFields } from "../../components/corruption-fields.tsx";
import { Trouble } from "../../components/trouble.tsx";
import { corruptionsTrouble, loadCorruptions } from "../../lib/corruptions.ts";
import { words } from "../../lib/format.ts";
import { save } from "../../lib/pictures.ts";
import { tell } from "../../lib/state.ts";
import { askSoon } from "./ask.ts";
import { Hear, Wave } from "./parts.tsx";
import type { Medium } from "./send.ts";
import { bytesOf } from "./sound.ts";
import { asTexts, corrupting, corruption, dropped, fileName, hasClassifier, sample, sent } from "./state.ts";

/** The sample as it is sent, and what is done to it before. */
export function Sent() {
  if (corruptionsTrouble.value) {
    return (
      <Trouble again={() => void loadCorruptions()}>Nothing can be corrupted here: {corruptionsTrouble.value}</Trouble>
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
            alt={how ? `The picture with ${words(how.name)}, severity ${how.severity}` : "The picture as it is sent"}
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
