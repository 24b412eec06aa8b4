// Runs in the audio thread: hands the microphone's samples over in pieces of about a twelfth of a second.

declare const registerProcessor: (name: string, processor: unknown) => void;
declare class AudioWorkletProcessor {
  readonly port: MessagePort;
}

const PIECE = 4096;

class Recorder extends AudioWorkletProcessor {
  private parts: Float32Array[] = [];
  private filled = 0;

  process(inputs: Float32Array[][]): boolean {
    const channel = inputs[0]?.[0];
    if (channel) {
      // The browser uses its own array again.
      this.parts.push(channel.slice());
      this.filled += channel.length;
      if (this.filled >= PIECE) this.handOver();
    }
    return true;
  }

  private handOver(): void {
    const piece = new Float32Array(this.filled);
    let place = 0;
    for (const part of this.parts) {
      piece.set(part, place);
      place += part.length;
    }
    this.parts = [];
    this.filled = 0;
    this.port.postMessage(piece, [piece.buffer]);
  }
}

registerProcessor("recorder", Recorder);

export {};
