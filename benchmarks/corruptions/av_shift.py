"""The name of an audio-video stream: what happened to its sound, its picture, or both.

clean                                     nothing
audio:rain:5                              the sound
video:fog:3                               the picture
both:rain:5+fog:3                         both; a sample's sound and picture are corrupted independently
all-audio:5, all-video:5, all-both:5      every one of them at that severity: 6, 15 and 90 streams

A severity left out is 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from benchmarks.corruptions.audio import AUDIO_CORRUPTIONS
from benchmarks.corruptions.constants import SEVERITIES
from benchmarks.corruptions.image import VIDEO_CORRUPTIONS
from benchmarks.corruptions.shift import CLEAN, UnknownShift

_HARDEST = SEVERITIES[-1]


@dataclass(frozen=True)
class Corruption:
    """Its name and severity 1..5."""

    name: str
    severity: int

    def __str__(self) -> str:
        return f"{self.name}:{self.severity}"


@dataclass(frozen=True)
class AVShift:
    """What is done to each modality; None: nothing."""

    audio: Corruption | None = None
    video: Corruption | None = None

    @property
    def kind(self) -> str:
        """clean, audio, video or both."""
        if self.audio is not None:
            return "audio" if self.video is None else "both"
        return CLEAN if self.video is None else "video"

    def __str__(self) -> str:
        parts = [str(part) for part in (self.audio, self.video) if part is not None]
        return ":".join([self.kind, "+".join(parts)]) if parts else CLEAN


def parse_av_shifts(texts: Sequence[str]) -> list[AVShift]:
    """Every stream that is asked for, once, in order. Raises UnknownShift."""
    return list(dict.fromkeys(shift for text in texts for shift in _parse(text.strip())))


def _parse(text: str) -> list[AVShift]:
    kind, _, rest = text.partition(":")
    if text == CLEAN:
        return [AVShift()]
    if kind == "audio":
        return [AVShift(audio=_corruption(rest, AUDIO_CORRUPTIONS, "audio"))]
    if kind == "video":
        return [AVShift(video=_corruption(rest, VIDEO_CORRUPTIONS, "video"))]
    if kind == "both":
        audio, plus, video = rest.partition("+")
        if not plus:
            raise UnknownShift(f"{text!r} is not both:AUDIO:severity+VIDEO:severity")
        return [
            AVShift(
                _corruption(audio, AUDIO_CORRUPTIONS, "audio"), _corruption(video, VIDEO_CORRUPTIONS, "video")
            )
        ]
    if kind in ("all-audio", "all-video", "all-both"):
        return _all(kind.removeprefix("all-"), _severity(rest, text))
    known = ["clean", "audio:", "video:", "both:", "all-audio", "all-video", "all-both"]
    raise UnknownShift(f"there is no shift {text!r}; shifts begin with {', '.join(known)}")


def _all(kind: str, severity: int) -> list[AVShift]:
    sounds = [Corruption(name, severity) for name in AUDIO_CORRUPTIONS]
    pictures = [Corruption(name, severity) for name in VIDEO_CORRUPTIONS]
    if kind == "audio":
        return [AVShift(audio=sound) for sound in sounds]
    if kind == "video":
        return [AVShift(video=picture) for picture in pictures]
    return [AVShift(sound, picture) for sound in sounds for picture in pictures]


def _corruption(text: str, names: Sequence[str], modality: str) -> Corruption:
    name, _, severity = text.partition(":")
    if name not in names:
        close = get_close_matches(name, names, n=1, cutoff=0.5)
        nearest = f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(names)}"
        raise UnknownShift(f"there is no {modality} corruption {name!r}{nearest}")
    return Corruption(name, _severity(severity, text))


def _severity(text: str, whole: str) -> int:
    if not text:
        return _HARDEST
    if not (text.isdecimal() and int(text) in SEVERITIES):
        raise UnknownShift(f"{whole!r}: severities are 1 to 5, not {text!r}")
    return int(text)
