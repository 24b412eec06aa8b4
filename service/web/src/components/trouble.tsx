import type { ComponentChildren } from "preact";

/** What went wrong, where it went wrong. `again`: tries once more. */
export function Trouble(props: { children: ComponentChildren; again?: () => void }) {
  return (
    <p role="alert" class="trouble">
      {props.children}{" "}
      {props.again && (
        <button type="button" onClick={props.again}>
          Try again
        </button>
      )}
    </p>
  );
}
