import type { ComponentChildren } from "preact";
import { useId } from "preact/hooks";

/** A label over its control. */
export function Field(props: { label: string; children: ComponentChildren; hint?: string; class?: string }) {
  return (
    <label class={`field ${props.class ?? ""}`}>
      <span>{props.label}</span>
      {props.children}
      {props.hint && <small>{props.hint}</small>}
    </label>
  );
}

export type Choice<T extends string> = T | { value: T; label: string; disabled?: boolean; group?: string };

export function Select<T extends string>(props: {
  label: string;
  value: T;
  choices: readonly Choice<T>[];
  change: (value: T) => void;
  hint?: string;
  disabled?: boolean;
  class?: string;
}) {
  const plain = props.choices.map((choice) => (typeof choice === "string" ? { value: choice, label: choice } : choice));
  const groups = [...new Set(plain.map((choice) => ("group" in choice ? choice.group : undefined)))];
  const option = (choice: { value: T; label: string; disabled?: boolean }) => (
    <option
      key={choice.value}
      value={choice.value}
      selected={choice.value === props.value}
      disabled={choice.disabled ?? false}
    >
      {choice.label}
    </option>
  );
  return (
    <Field label={props.label} {...(props.hint ? { hint: props.hint } : {})} class={props.class ?? ""}>
      <select
        value={props.value}
        disabled={props.disabled ?? false}
        onChange={(event) => props.change(event.currentTarget.value as T)}
      >
        {groups.map((group) => {
          const inside = plain.filter((choice) => ("group" in choice ? choice.group : undefined) === group);
          return group ? (
            <optgroup key={group} label={group}>
              {inside.map(option)}
            </optgroup>
          ) : (
            inside.map(option)
          );
        })}
      </select>
    </Field>
  );
}

export function Slider(props: {
  label: string;
  value: number;
  min: number;
  max: number;
  step?: number;
  change: (value: number) => void;
  disabled?: boolean;
}) {
  // Without `for` the label would be the output's, which comes first.
  const id = useId();
  return (
    <label class="field slider" for={id}>
      <span>
        {props.label} <output>{props.value}</output>
      </span>
      <input
        id={id}
        aria-label={props.label}
        type="range"
        min={props.min}
        max={props.max}
        step={props.step ?? 1}
        value={props.value}
        disabled={props.disabled ?? false}
        onInput={(event) => props.change(event.currentTarget.valueAsNumber)}
      />
    </label>
  );
}

/** One of a few, side by side. */
export function Segments<T extends string>(props: {
  label: string;
  value: T;
  choices: readonly { value: T; label: string }[];
  change: (value: T) => void;
}) {
  return (
    <fieldset class="segments">
      <legend class="unseen">{props.label}</legend>
      {props.choices.map((choice) => (
        <label key={choice.value} class={choice.value === props.value ? "chosen" : ""}>
          <input
            type="radio"
            class="unseen"
            name={props.label}
            value={choice.value}
            checked={choice.value === props.value}
            onChange={() => props.change(choice.value)}
          />
          {choice.label}
        </label>
      ))}
    </fieldset>
  );
}

/** How far something is, 0 to 1, with words. */
export function Progress(props: { value: number; label: string }) {
  return (
    <div class="progress">
      <progress max={1} value={props.value} aria-label={props.label} />
      <span>{props.label}</span>
    </div>
  );
}

/** A line that says how it is: "ok", "busy", "warn", "bad" or "off". */
export function Badge(props: {
  kind: "ok" | "busy" | "warn" | "bad" | "off";
  children: ComponentChildren;
  title?: string;
}) {
  return (
    <span class={`badge ${props.kind}`} title={props.title}>
      {props.children}
    </span>
  );
}
