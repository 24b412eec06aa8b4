"""The wire of /corruptions."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from service.http.schemas import Shown, Text, Wire


class CorruptQuery(Wire):
    """One text, one picture or one sound."""

    text: Text | None = None
    """A text, as a query has it."""
    image: str | None = None
    """A picture as base64 without line breaks, or as a data URI."""
    audio: str | None = None
    """A sound (WAV, FLAC, OGG) as base64 without line breaks, or as a data URI."""

    @model_validator(mode="after")
    def _is_one_thing(self) -> Self:
        if sum(part is not None for part in (self.text, self.image, self.audio)) != 1:
            raise ValueError("one of text, image and audio is needed, and no second")
        return self

    @property
    def kind(self) -> Literal["image", "text", "audio"]:
        if self.text is not None:
            return "text"
        return "image" if self.image is not None else "audio"


class CorruptBody(Wire):
    """Queries, all of one modality, and what to do to them."""

    corruption: str = Field(min_length=1, max_length=64)
    """A name of `GET /corruptions`; which modality it is of, the queries say."""
    severity: int | None = None
    """1 to 5, of texts 1 to 7, of rewritten sentences 1; 5 if none is named, or the highest below."""
    style: Literal["imagenet_c", "mm_robustness"] = "imagenet_c"
    """Of pictures only: as in ImageNet-C, or as in COCO-C and Flickr-C."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Query i draws from a generator of (seed, i): the same request gets the same answer."""
    queries: list[CorruptQuery] = Field(min_length=1)
    """One or more."""


class CorruptionShown(Shown):
    name: str
    group: str
    severities: list[int]


class TextCorruptionShown(CorruptionShown):
    summary: str
    available: bool
    why: str
    """Why it cannot be made here; empty where it can."""


class CorruptionsShown(Shown):
    image: list[CorruptionShown]
    text: list[TextCorruptionShown]
    audio: list[CorruptionShown]


class CorruptedQuery(Shown):
    """As the query was: a text, a PNG or a WAV (mono, 16 bits) as data URI."""

    text: str | None = None
    image: str | None = None
    audio: str | None = None


class CorruptedShown(Shown):
    corruption: str
    severity: int
    seed: int
    queries: list[CorruptedQuery]
    """In the order of the request."""
