// Which sample is asked about, and with whose labels.

import { askSoon, forgetAnswer } from "./ask.ts";
import { stopSequence } from "./sequence.ts";
import { sample, zeroShot, type Sample } from "./state.ts";

/** The person's labels in place of the classifier's, or back; a clip or a gallery's picture is of no use to the other. */
export function useOwnLabels(own: boolean): void {
  zeroShot.value = own;
  if (sample.value?.from === (own ? "clips" : "pictures")) choose(null);
  else void askSoon();
}

/** Take another sample, and ask. */
export function choose(next: Sample | null): void {
  stopSequence();
  sample.value = next;
  if (next) void askSoon();
  else {
    forgetAnswer();
  }
}
