"""Corrupted queries on request: the generators of the benchmarks (docs/corruptions.md) behind the API.

The package `benchmarks` is imported when it is first needed, because not every installation has it.
"""

from __future__ import annotations

import asyncio
import base64
import io
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from anyio import CapacityLimiter, to_thread
from PIL import Image

from encoders.preprocessing import open_image
from service.errors import NotFound, TooLarge
from service.http.corruption_schemas import CorruptBody, CorruptQuery
from service.http.errors import Refusal, shorten
from service.http.queries import check_text
from service.http.samples import bytes_of, named_errors
from service.settings import Settings

if TYPE_CHECKING:
    from benchmarks.corruptions.audio import NoiseBeds

Kind = Literal["image", "text", "audio"]
LARGEST_PIXELS = 512
"""Longest side of the pictures that are corrupted; larger ones are reduced to it."""
HIGHEST_RATE = 48_000
"""Samples a second of the sounds that are corrupted; faster ones are resampled to it."""
_KEPT_RATES = 4

_IMAGE_GROUPS: Mapping[str, Sequence[str]] = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "weather": ("snow", "frost", "fog", "brightness"),
    "digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
}
_AUDIO_GROUPS: Mapping[str, Sequence[str]] = {
    "noise": ("gaussian_noise", "traffic", "crowd"),
    "weather": ("rain", "thunder", "wind"),
}


def installed() -> bool:
    """Whether this installation has the corruptions; looked up, not imported."""
    try:
        return find_spec("benchmarks.corruptions") is not None
    except ImportError:
        return False


def require_installed() -> None:
    """Raises NotFound `no_corruptions`."""
    if not installed():
        raise NotFound(
            "this server has no corruptions: its installation lacks the package `benchmarks.corruptions`",
            code="no_corruptions",
        )


def catalogue() -> dict[str, list[dict[str, Any]]]:
    """Every corruption by modality, in the order of the benchmarks. Looks for a WordNet the first time."""
    from benchmarks.corruptions.text import TEXT_CORRUPTIONS

    def entries(kind: Kind, groups: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
        group_of = {name: group for group, members in groups.items() for name in members}
        return [
            {"name": name, "group": group_of[name], "severities": severities}
            for name, severities in _known(kind).items()
        ]

    texts = [
        {
            "name": name,
            "group": TEXT_CORRUPTIONS[name].kind,
            "summary": TEXT_CORRUPTIONS[name].summary,
            "severities": severities,
            "available": not (why := _missing_tool(name)),
            "why": why,
        }
        for name, severities in _known("text").items()
    ]
    return {"image": entries("image", _IMAGE_GROUPS), "text": texts, "audio": entries("audio", _AUDIO_GROUPS)}


@dataclass(frozen=True)
class Corruption:
    """One corruption at a severity, and what the queries that it is applied to may be."""

    kind: Kind
    name: str
    severity: int
    style: Literal["imagenet_c", "mm_robustness"]
    seed: int
    settings: Settings

    @classmethod
    def of_request(cls, body: CorruptBody, settings: Settings) -> Corruption:
        """What can be told without decoding. Reads the disk when a corruption needs a WordNet.

        Raises:
            Refusal: 422 `unknown_corruption`, `unknown_severity`, `missing_tool`, `invalid_request`.
            TooLarge: too many queries, or too long a text.
        """
        _check_queries(body.queries, settings)
        kind = body.queries[0].kind
        severities = _severities(kind, body.corruption)
        severity = min(5, severities[-1]) if body.severity is None else body.severity
        if severity not in severities:
            raise Refusal(
                422,
                "unknown_severity",
                f"{body.corruption} has the severities {', '.join(map(str, severities))}, not {severity}",
                details={"severities": severities},
            )
        if kind != "image" and body.style != "imagenet_c":
            raise Refusal(422, "invalid_request", "style: it belongs to corruptions of pictures")
        why = _missing_tool(body.corruption) if kind == "text" else ""
        if why:
            raise Refusal(422, "missing_tool", why, details={"corruption": body.corruption})
        return cls(kind, body.corruption, severity, body.style, body.seed, settings)

    def apply(self, place: int, query: CorruptQuery, room: Room) -> dict[str, str]:
        """The query at `place` of the request, corrupted, as JSON. In a thread.

        Raises:
            TooLarge, Refusal: 422 `bad_image`, `bad_audio`; no room for it in the answer.
        """
        rng = np.random.default_rng([self.seed, place])
        field = f"queries[{place}].{self.kind}"
        if query.text is not None:
            made = self._text(query.text, rng)
        elif query.image is not None:
            made = _data_uri("image/png", self._picture(field, query.image, rng))
        else:
            assert query.audio is not None
            made = _data_uri("audio/wav", self._sound(field, query.audio, rng))
        room.take(len(made))
        return {self.kind: made}

    def _text(self, text: str, rng: np.random.Generator) -> str:
        from benchmarks.corruptions import corrupt_text

        return corrupt_text(text, self.name, self.severity, rng)

    def _picture(self, field: str, content: str, rng: np.random.Generator) -> bytes:
        from benchmarks.corruptions import corrupt_image

        limits = self.settings
        with named_errors(field, "image"):
            data = bytes_of(content, limits.max_image_bytes, "image")
            picture = open_image(data, max_pixels=limits.max_image_pixels, max_bytes=limits.max_image_bytes)
        picture.thumbnail((LARGEST_PIXELS, LARGEST_PIXELS), Image.Resampling.BICUBIC)
        corrupted = corrupt_image(
            np.asarray(picture), self.name, self.severity, rng, style=self.style, scale=True
        )
        out = io.BytesIO()
        Image.fromarray(corrupted).save(out, "PNG")
        return out.getvalue()

    def _sound(self, field: str, content: str, rng: np.random.Generator) -> bytes:
        import soundfile

        from benchmarks.corruptions.audio import corrupt_audio
        from encoders.audio import read_sound, resampled

        limits = self.settings
        with named_errors(field, "audio"):
            data = bytes_of(content, limits.max_audio_bytes, "audio")
            waveform, rate = read_sound(
                data, max_seconds=limits.max_audio_seconds, max_bytes=limits.max_audio_bytes
            )
            # Also refuses what is too short to classify.
            waveform = resampled(waveform, rate, min(rate, HIGHEST_RATE))
        rate = min(rate, HIGHEST_RATE)
        corrupted = corrupt_audio(waveform, self.name, self.severity, rng, _beds(rate))
        out = io.BytesIO()
        soundfile.write(out, (corrupted * 32768).astype(np.int16), rate, format="WAV", subtype="PCM_16")
        return out.getvalue()


class Room:
    """What is left of the most characters that an answer may have.

    Noise does not compress: without a bound a small request of plain pictures would get a huge answer.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._left = most
        self._lock = threading.Lock()

    def take(self, characters: int) -> None:
        """Raises TooLarge once there is no room left."""
        with self._lock:
            self._left -= characters
            left = self._left
        if left < 0:
            raise TooLarge(
                f"the corrupted queries have more than {self._most} bytes together; send fewer at once",
                details={"max_bytes": self._most},
            )


def share_of(threads: CapacityLimiter) -> CapacityLimiter:
    """Half of them, at least one."""
    return CapacityLimiter(max(1, int(threads.total_tokens) // 2))


async def corrupt_all(
    corruption: Corruption,
    queries: Sequence[CorruptQuery],
    threads: CapacityLimiter,
    share: CapacityLimiter,
) -> list[dict[str, str]]:
    """In order. Raises what `Corruption.apply` raises, always for the first bad query.

    Args:
        share: how many of the threads all these requests together may take (`share_of`), so that queries that
            are to be answered get their turn. Requests take turns at it, however many queries they have.
    """
    room = Room(corruption.settings.max_body_bytes)
    turns = asyncio.Semaphore(int(share.total_tokens))
    failed = False

    async def one(place: int) -> dict[str, str]:
        nonlocal failed
        async with turns:
            if failed:  # an earlier one: turns come in order
                return {}
            try:
                async with share:
                    return await to_thread.run_sync(
                        corruption.apply, place, queries[place], room, limiter=threads
                    )
            except BaseException:
                failed = True
                raise

    # Every job is awaited even if one fails: a thread cannot be stopped, and its error must not be lost.
    results = await asyncio.gather(*map(one, range(len(queries))), return_exceptions=True)
    made: list[dict[str, str]] = []
    for result in results:
        if isinstance(result, BaseException):
            raise result
        made.append(result)
    return made


def _check_queries(queries: Sequence[CorruptQuery], settings: Settings) -> None:
    if len(queries) > settings.max_queries_per_request:
        raise TooLarge(
            f"the request has {len(queries)} queries; the server takes {settings.max_queries_per_request}",
            details={"max_queries": settings.max_queries_per_request},
        )
    if len({query.kind for query in queries}) > 1:
        raise Refusal(
            422, "invalid_request", "queries: texts, pictures and sounds cannot be mixed in one request"
        )
    for place, query in enumerate(queries):
        if query.text is not None:
            check_text(f"queries[{place}].text", query.text, settings)


def _known(kind: Kind) -> dict[str, list[int]]:
    """Corruptions of a modality, in the order of the benchmarks, with their severities."""
    from benchmarks.corruptions import IMAGE_CORRUPTIONS
    from benchmarks.corruptions.audio import AUDIO_CORRUPTIONS
    from benchmarks.corruptions.constants import SEVERITIES
    from benchmarks.corruptions.text import TEXT_CORRUPTIONS

    if kind == "text":
        return {name: list(corruption.levels) for name, corruption in TEXT_CORRUPTIONS.items()}
    return {name: list(SEVERITIES) for name in (IMAGE_CORRUPTIONS if kind == "image" else AUDIO_CORRUPTIONS)}


def _severities(kind: Kind, name: str) -> list[int]:
    """Raises Refusal 422 `unknown_corruption`, with the nearest names of that modality."""
    known = _known(kind)
    if name in known:
        return known[name]
    lowered = {entry.lower(): entry for entry in known}
    nearest = [lowered[close] for close in get_close_matches(name.lower(), lowered, cutoff=0.5)]
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"there are {', '.join(known)}"
    queries = {"image": "pictures", "text": "texts", "audio": "sounds"}[kind]
    raise Refusal(
        422,
        "unknown_corruption",
        f"there is no corruption {shorten(name, 60)!r} of {queries}; {hint}",
        details={"corruption": shorten(name, 60), "nearest": nearest},
    )


def _missing_tool(name: str) -> str:
    """Why a corruption of texts cannot be made here; "" where it can."""
    from benchmarks.corruptions import MissingTool
    from benchmarks.corruptions.text import TEXT_CORRUPTIONS, check_tools

    try:
        check_tools(name)
    except MissingTool as error:
        if TEXT_CORRUPTIONS[name].needs == "WordNet":
            return str(error)
        return f"{name} needs a model that rewrites sentences, and a server loads none: `attune corrupt` does"
    return ""


@lru_cache(maxsize=_KEPT_RATES)
def _beds(sample_rate: int) -> NoiseBeds:
    from benchmarks.corruptions.audio import NoiseBeds

    return NoiseBeds(sample_rate)


def _data_uri(media_type: str, data: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode('ascii')}"
