import { words } from "../lib/format.ts";
import { corruptions, type Corruption, type Medium } from "../lib/corruptions.ts";
import { Select, Slider, type Choice } from "./fields.tsx";

const CLEAN = "";
const SEVERITIES = [1, 2, 3, 4, 5];
const USUAL_SEVERITY = 5;

const cardOf = (medium: Medium, name: string | undefined) =>
  corruptions.value?.[medium].find((card) => card.name === name);

function choicesOf(medium: Medium): Choice<string>[] {
  const cards = corruptions.value?.[medium] ?? [];
  return [
    { value: CLEAN, label: "clean" },
    ...cards.map(({ name, summary, group, available = true }) => ({
      value: name,
      label: `${summary ? `${name}: ${summary}` : words(name)}${available ? "" : " (not installed)"}`,
      disabled: !available,
      group,
    })),
  ];
}

/** Which corruption and how strong; null: none. */
export function CorruptionFields(props: {
  medium: Medium;
  label: string;
  value: Corruption | null;
  change: (value: Corruption | null) => void;
  disabled?: boolean;
}) {
  const { medium, value, change, disabled = false } = props;
  const severities = cardOf(medium, value?.name)?.severities ?? SEVERITIES;
  const choose = (name: string) => {
    const most = Math.max(...(cardOf(medium, name)?.severities ?? SEVERITIES));
    change(name === CLEAN ? null : { name, severity: Math.min(value?.severity ?? USUAL_SEVERITY, most) });
  };
  return (
    <>
      <Select
        label={props.label}
        value={value?.name ?? CLEAN}
        choices={choicesOf(medium)}
        disabled={disabled}
        change={choose}
      />
      <Slider
        label="Severity"
        value={value?.severity ?? USUAL_SEVERITY}
        min={Math.min(...severities)}
        max={Math.max(...severities)}
        disabled={value === null || disabled}
        change={(severity) => value && change({ ...value, severity })}
      />
    </>
  );
}
