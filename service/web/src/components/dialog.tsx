import { signal } from "@preact/signals";
import type { ComponentChildren } from "preact";
import { useEffect, useId, useRef } from "preact/hooks";

/** A modal dialog; Escape and the close button close it. Mount it to open it. */
export function Dialog(props: { title: string; close: () => void; children: ComponentChildren; wide?: boolean }) {
  const element = useRef<HTMLDialogElement>(null);
  const mounted = useRef(true);
  const title = useId();
  useEffect(() => {
    const dialog = element.current;
    const before = document.activeElement;
    mounted.current = true;
    dialog?.showModal();
    return () => {
      mounted.current = false;
      dialog?.close();
      if (before instanceof HTMLElement) before.focus();
    };
  }, []);
  return (
    <dialog
      ref={element}
      class={props.wide ? "wide" : ""}
      aria-labelledby={title}
      onCancel={(event) => {
        // Leaving a file chooser inside is a "cancel" too, and it bubbles.
        if (event.target !== event.currentTarget) return;
        event.preventDefault();
        props.close();
      }}
      onClose={() => {
        // A second Escape closes a dialog whatever the page says.
        if (mounted.current) props.close();
      }}
    >
      <header>
        <h2 id={title}>{props.title}</h2>
        <button type="button" class="icon" aria-label="Close" onClick={props.close}>
          ✕
        </button>
      </header>
      {props.children}
    </dialog>
  );
}

/** The end of a dialog's form: why it was refused, and the buttons. `children`: what the submitting one says. */
export function DialogEnd(props: {
  refused: string;
  cancel: () => void;
  disabled: boolean;
  danger?: boolean;
  children: ComponentChildren;
}) {
  return (
    <>
      {props.refused && (
        <p role="alert" class="c-bad">
          {props.refused}
        </p>
      )}
      <footer>
        <button type="button" onClick={props.cancel}>
          Cancel
        </button>
        <button type="submit" class={props.danger ? "danger" : "primary"} disabled={props.disabled}>
          {props.children}
        </button>
      </footer>
    </>
  );
}

interface Question {
  title: string;
  text: string;
  action: string;
  answer: (yes: boolean) => void;
}

const question = signal<Question | null>(null);

/** Ask before something that cannot be taken back. */
export function confirmed(title: string, text: string, action: string): Promise<boolean> {
  return new Promise((resolve) => {
    question.value = {
      title,
      text,
      action,
      answer: (yes) => {
        question.value = null;
        resolve(yes);
      },
    };
  });
}

/** Where `confirmed` asks; the frame of the page mounts it once. */
export function Confirmation() {
  const asked = question.value;
  if (!asked) return null;
  return (
    <Dialog title={asked.title} close={() => asked.answer(false)}>
      <p>{asked.text}</p>
      <footer>
        <button type="button" onClick={() => asked.answer(false)}>
          Cancel
        </button>
        <button type="button" class="danger" onClick={() => asked.answer(true)}>
          {asked.action}
        </button>
      </footer>
    </Dialog>
  );
}
