"""Sounds as bytes, good and bad ones. No clip and no sound is longer than it must be."""

from __future__ import annotations

import io
import struct

import numpy as np
import soundfile


def tone(seconds: float = 0.1, rate: int = 16_000, amplitude: float = 0.5) -> np.ndarray:
    """float32 [n], within -amplitude..amplitude."""
    times = np.arange(int(seconds * rate)) / rate
    return (amplitude * np.sin(2 * np.pi * 440 * times)).astype(np.float32)


def wav(samples: np.ndarray | None = None, rate: int = 16_000, subtype: str = "PCM_16") -> bytes:
    return sound(samples, rate, "WAV", subtype)


def sound(
    samples: np.ndarray | None = None, rate: int = 16_000, format: str = "WAV", subtype: str | None = None
) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(
        buffer, tone(rate=rate) if samples is None else samples, rate, format=format, subtype=subtype
    )
    return buffer.getvalue()


def announcing(seconds: float, rate: int = 16_000) -> bytes:
    """A WAV of a few bytes whose header announces so many seconds."""
    size = int(seconds * rate) * 2
    header = struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", size + 36, b"WAVE", b"fmt ", 16, 1, 1, rate, 2 * rate,
                         2, 16, b"data", size)  # fmt: skip
    return header + bytes(1000)
