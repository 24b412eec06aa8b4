import { useId, useState } from "preact/hooks";
import { streams } from "../lib/state.ts";
import { Field } from "./fields.tsx";

/** As the server takes it; attribute patterns are matched whole. */
const NAME = "[A-Za-z0-9]([.]?[A-Za-z0-9_\\-])*[.]?";

/** A stream's name; those that are known are offered. Told of when it is entered, not with each key. */
export function StreamField(props: {
  label: string;
  value: string;
  change: (name: string) => void;
  disabled?: boolean;
}) {
  // What is being typed: news that come meanwhile must not overwrite it.
  const [draft, setDraft] = useState<string | null>(null);
  const known = useId();
  return (
    <>
      <Field label={props.label}>
        <input
          list={known}
          required
          maxLength={128}
          pattern={NAME}
          autocomplete="off"
          spellcheck={false}
          value={draft ?? props.value}
          disabled={props.disabled ?? false}
          onInput={(event) => setDraft(event.currentTarget.value)}
          onChange={(event) => {
            const field = event.currentTarget;
            if (field.reportValidity()) props.change(field.value);
            setDraft(null);
          }}
        />
      </Field>
      <datalist id={known}>
        {[...streams.value.keys()].map((name) => (
          <option key={name} value={name} />
        ))}
      </datalist>
    </>
  );
}
