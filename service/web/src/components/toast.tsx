import { dismiss, toasts } from "../lib/state.ts";

/** What has just happened; read out by screen readers, errors at once. */
export function Toasts() {
  return (
    <div class="toasts">
      {(["info", "error"] as const).map((kind) => (
        <div key={kind} role={kind === "error" ? "alert" : "status"}>
          {toasts.value
            .filter((toast) => toast.kind === kind)
            .map((toast) => (
              <p key={toast.id} class={`toast ${kind}`}>
                <span>{toast.text}</span>
                <button type="button" class="icon" aria-label="Dismiss" onClick={() => dismiss(toast.id)}>
                  ✕
                </button>
              </p>
            ))}
        </div>
      ))}
    </div>
  );
}
