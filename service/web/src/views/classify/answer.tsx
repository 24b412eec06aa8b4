import { Field, Segments, Select } from "../../components/fields.tsx";
import { LearningFields } from "../../components/learning-fields.tsx";
import { Trouble } from "../../components/trouble.tsx";
import { models } from "../../lib/state.ts";
import { askSoon } from "./ask.ts";
import { useOwnLabels } from "./choose.ts";
import { methodChoices } from "./methods.ts";
import { Result } from "./result.tsx";
import { SoFar } from "./so-far.tsx";
import { asTexts, hasClassifier, labelsWrong, mode, ownLabels, template, top, trouble, zeroShot } from "./state.ts";

/** What both models say. */
export function AnswerCard() {
  return (
    <section class="card classify-answer" aria-labelledby="classify-answer">
      <div class="card-head">
        <h2 id="classify-answer">Answer</h2>
        {hasClassifier.value && (
          <Segments
            label="Labels"
            value={zeroShot.value ? "own" : "model"}
            choices={[
              { value: "model", label: "The model's labels" },
              { value: "own", label: "My labels" },
            ]}
            change={(value) => useOwnLabels(value === "own")}
          />
        )}
      </div>
      {asTexts.value && <OwnLabels />}
      <Options />
      {trouble.value ? <Trouble>{trouble.value}</Trouble> : <Result />}
      <SoFar />
    </section>
  );
}

function OwnLabels() {
  return (
    <div class="classify-own">
      <p class="hint">
        {hasClassifier.value
          ? ""
          : "This server has no classifier of sound and pictures (a start with --classifier brings one). "}
        Write what pictures may show: the encoder of the search picks the closest. Sound takes no part.
      </p>
      <Field label="Labels, with commas or on lines">
        <textarea
          rows={2}
          value={ownLabels.value}
          aria-invalid={labelsWrong.value !== ""}
          aria-describedby="classify-labels-wrong"
          onInput={(event) => {
            ownLabels.value = event.currentTarget.value;
            void askSoon();
          }}
        />
      </Field>
      <Field label="In a sentence">
        <input
          type="text"
          value={template.value}
          onInput={(event) => {
            template.value = event.currentTarget.value;
            void askSoon();
          }}
        />
      </Field>
      <p id="classify-labels-wrong" class="classify-wrong">
        {labelsWrong.value}
      </p>
    </div>
  );
}

function Options() {
  return (
    <div class="classify-options">
      <LearningFields
        task="classify"
        methods={asTexts.value ? null : methodChoices(models.value?.classifier ?? null)}
        mode={mode}
        ask={() => void askSoon()}
      />
      <Select
        label="Labels shown"
        value={String(top.value)}
        choices={["5", "8", "10"]}
        change={(value) => (top.value = Number(value))}
      />
    </div>
  );
}
