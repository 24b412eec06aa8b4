import { useState } from "preact/hooks";
import { keyKind, lastCall } from "../lib/api.ts";
import { count } from "../lib/format.ts";
import { asCurl, asPython } from "../lib/snippets.ts";
import { say } from "../lib/state.ts";
import { Dialog } from "./dialog.tsx";
import { Segments } from "./fields.tsx";

/** What the page did last, to be done elsewhere. */
export function CopyAs() {
  const [open, setOpen] = useState(false);
  const [form, setForm] = useState<"curl" | "python">("curl");
  const call = lastCall.value;
  if (!call) return null;
  const key = keyKind(call.method, call.path);
  // Only while it is looked at: a call may hold megabytes of pictures.
  const files = call.upload ? [call.upload.file] : (call.files ?? []);
  const code = !open ? "" : form === "curl" ? asCurl(call, location.origin, key) : asPython(call, location.origin, key);
  return (
    <>
      <button type="button" class="quiet" onClick={() => setOpen(true)}>
        Copy as curl / Python
      </button>
      {open && (
        <Dialog title={`${call.method} ${call.path.split("?")[0]}`} close={() => setOpen(false)} wide>
          <Segments
            label="Language"
            value={form}
            choices={[
              { value: "curl", label: "curl" },
              { value: "python", label: "Python" },
            ]}
            change={setForm}
          />
          <pre class="code" tabIndex={0}>
            <code>{code}</code>
          </pre>
          {files.length > 0 && (
            <p class="hint">
              {files.length === 1 ? "It reads the file it names" : `It reads the ${count(files.length)} files it names`}{" "}
              from the folder in which it runs.
            </p>
          )}
          <footer>
            <button type="button" class="primary" onClick={() => void copy(code)}>
              Copy
            </button>
          </footer>
        </Dialog>
      )}
    </>
  );
}

async function copy(text: string): Promise<void> {
  try {
    await navigator.clipboard.writeText(text);
    say("Copied");
  } catch {
    say("The browser does not let the page copy; select the text instead", "error");
  }
}
