import { signal } from "@preact/signals";

type Choice = "auto" | "light" | "dark";
const PLACE = "attune-theme";
const dark = window.matchMedia("(prefers-color-scheme: dark)");

const choice = signal<Choice>(stored());
/** What is shown. */
export const theme = signal<"light" | "dark">("light");

function stored(): Choice {
  try {
    const value = localStorage.getItem(PLACE);
    return value === "light" || value === "dark" ? value : "auto";
  } catch {
    return "auto";
  }
}

function apply(): void {
  theme.value = choice.value === "auto" ? (dark.matches ? "dark" : "light") : choice.value;
  document.documentElement.dataset.theme = theme.value;
}

dark.addEventListener("change", apply);
apply();

export function ThemeButton() {
  const next = theme.value === "dark" ? "light" : "dark";
  return (
    <button
      type="button"
      class="icon"
      aria-label={`Use ${next} colours`}
      title={`Use ${next} colours`}
      onClick={() => {
        choice.value = next;
        try {
          localStorage.setItem(PLACE, next);
        } catch {
          // The choice holds until the page is left.
        }
        apply();
      }}
    >
      <svg viewBox="0 0 20 20" width="18" height="18" aria-hidden="true">
        <circle cx="10" cy="10" r="6.5" fill="none" stroke="currentColor" stroke-width="1.6" />
        <path d="M10 3.500a6.500 6.500 0 0 1 0 13z" fill="currentColor" />
      </svg>
    </button>
  );
}
