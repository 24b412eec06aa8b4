import type { Signal } from "@preact/signals";
import type { MethodChoice } from "../lib/methods.ts";
import { stream } from "../lib/state.ts";
import type { Mode, Task } from "../lib/types.ts";
import { Select } from "./fields.tsx";
import { MethodSelect } from "./method-select.tsx";
import { StreamField } from "./stream-field.tsx";

const MODES: { value: Mode; label: string }[] = [
  { value: "auto", label: "auto" },
  { value: "sync", label: "sync: learn first" },
  { value: "async", label: "async: answer first" },
  { value: "off", label: "off: source only" },
];

/** Which stream answers, with which method, and when it learns. `methods`: null where none takes part. */
export function LearningFields(props: {
  task: Task;
  methods: readonly MethodChoice[] | null;
  mode: Signal<Mode>;
  /** Whose answers another stream or mode changes. */
  ask: () => void;
  /** What follows another method. */
  relearn?: () => void;
}) {
  const { task, methods, mode, ask } = props;
  return (
    <>
      <StreamField
        label="Stream"
        value={stream.value}
        change={(name) => {
          stream.value = name;
          ask();
        }}
      />
      {methods && <MethodSelect task={task} choices={methods} changed={props.relearn} />}
      <Select
        label="Learning"
        value={mode.value}
        choices={MODES}
        change={(value) => {
          mode.value = value;
          ask();
        }}
      />
    </>
  );
}
