import { useEffect } from "preact/hooks";
import { models } from "../../lib/state.ts";
import { whyNever, type Wanted } from "./devices.ts";
import { capture, deviceTroubles, goLive, opening, stopLive, wanted } from "./live.ts";
import { heardSeconds } from "./sound.ts";
import { asTexts, waiting } from "./state.ts";

/** Camera and microphone, and which of them. */
export function Camera() {
  useEffect(() => stopLive, []);
  const never = whyNever(window.isSecureContext, typeof navigator.mediaDevices?.getUserMedia === "function");
  const open = capture.value;
  const { camera, microphone } = wanted.value;
  const seconds = heardSeconds(models.value?.classifier?.audio.frames).toFixed(1);
  const noSound = asTexts.value;
  if (never) return <p class="classify-note">{never} Demo clips and files work here.</p>;
  return (
    <div class="classify-live">
      <p class="hint">
        {noSound
          ? "Once a second a frame is asked about. It goes to this server only."
          : `Once a second a frame and the last ${seconds} s of sound are asked about. They go to this server only.`}
      </p>
      <div class="row">
        {open || opening.value ? (
          <button type="button" class="primary" onClick={stopLive}>
            Stop
          </button>
        ) : (
          <button type="button" class="primary" disabled={!camera && !microphone} onClick={() => void goLive()}>
            Start
          </button>
        )}
        <Device name="camera" label="Camera" />
        <Device name="microphone" label="Microphone" />
        <small role="status">
          {opening.value
            ? "The browser asks you whether it may …"
            : open
              ? waiting.value || "Camera and microphone are in use."
              : ""}
        </small>
      </div>
      {deviceTroubles.value.length > 0 && (
        <ul role="alert" class="trouble">
          {deviceTroubles.value.map((why) => (
            <li key={why}>{why}</li>
          ))}
        </ul>
      )}
      {open?.has("camera") && (
        <video
          ref={(video) => open.watch(video)}
          class="classify-view"
          muted
          playsInline
          aria-label="What the camera sees"
        />
      )}
    </div>
  );
}

function Device({ name, label }: { name: keyof Wanted; label: string }) {
  return (
    <label class="classify-check">
      <input
        type="checkbox"
        checked={wanted.value[name]}
        disabled={capture.value !== null}
        onChange={(event) => (wanted.value = { ...wanted.value, [name]: event.currentTarget.checked })}
      />{" "}
      {label}
    </label>
  );
}
