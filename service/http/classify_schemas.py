"""The wire of /classify: what clients send and get, over JSON, forms, NDJSON and WebSocket alike."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, JsonValue, model_validator

from service.http.schemas import (
    AdaptationPartShown,
    AdaptationShown,
    PartShown,
    Shown,
    StreamName,
    Text,
    TimingsShown,
    Wire,
)

MAX_LABEL_CHARACTERS = 256
MAX_TEMPLATE_CHARACTERS = 512
MAX_FRAMES = 256
PLACE = "{}"
"""Where a template has the label."""

# Far beyond any classifier's input. They only stop a body of millions of rows; the engine's spec decides.
_MOST_FBANK_FRAMES = 65_536
_MOST_MEL_BINS = 1024


def _one_place(template: str) -> str:
    """The label is put in by plain replacement, so nothing else in braces would be understood."""
    if template.count(PLACE) != 1 or template.count("{") != 1 or template.count("}") != 1:
        raise ValueError("a template holds {} once, for the label, and no other braces")
    return template


def _each_once(labels: list[str]) -> list[str]:
    if len(set(labels)) != len(labels):
        raise ValueError("a label is there twice")
    return labels


Label = Annotated[Text, Field(min_length=1, max_length=MAX_LABEL_CHARACTERS)]
Labels = Annotated[list[Label], Field(min_length=2), AfterValidator(_each_once)]
Template = Annotated[str, Field(max_length=MAX_TEMPLATE_CHARACTERS), AfterValidator(_one_place)]
FbankRow = Annotated[list[float], Field(min_length=1, max_length=_MOST_MEL_BINS)]
SampleId = Annotated[str, Field(min_length=1, max_length=512)]


class SampleBody(Wire):
    """One thing to classify: sound and picture, either of them, or a clip that has both. With `labels`:
    exactly one of `image`, `frames`, `text`.
    """

    id: SampleId | None = None
    """Comes back with the answer."""
    audio: str | None = None
    """A sound (WAV, FLAC, OGG) as base64 without line breaks, or as a data URI."""
    fbank: list[FbankRow] | None = Field(None, max_length=_MOST_FBANK_FRAMES)
    """In place of `audio`: its log mel filter bank, one row a frame, neither padded nor normalised."""
    image: str | None = None
    """A picture (PNG, JPEG, WebP, GIF, BMP, TIFF) as base64 or data URI."""
    frames: list[str] | None = Field(None, max_length=MAX_FRAMES)
    """In place of `image`: pictures of a video in order, of which the middle one is used."""
    clip: str | None = None
    """In place of all these: a short video (MP4, WebM, Matroska, AVI) as base64 or data URI; its middle frame
    and its sound are used."""
    text: Text | None = None
    """A text; only with `labels`."""

    @model_validator(mode="after")
    def _something_once(self) -> Self:
        given = {name for name in _CONTENT if getattr(self, name) is not None}
        if not given:
            raise ValueError(f"a sample needs at least one of {', '.join(_CONTENT)}")
        for either, other in (("audio", "fbank"), ("image", "frames")):
            if {either, other} <= given:
                raise ValueError(f"a sample has {either} or {other}, not both")
        for alone in ("clip", "text"):
            if alone in given and len(given) > 1:
                raise ValueError(f"a sample with {alone} has nothing else")
        if self.frames == []:
            raise ValueError("frames is empty; a video has at least one picture")
        return self


_CONTENT = ("audio", "fbank", "image", "frames", "clip", "text")


class ClassifyOptions(Wire):
    """How to answer; the same in every form."""

    stream: StreamName = "default"
    """Whose samples these are: samples of one stream share what was learnt from them."""
    adapt: Literal["auto", "sync", "async", "off"] = "auto"
    """`sync`: adapt to these samples before answering. `async`: answer at once, adapt in the background.
    `off`: the unadapted model. `auto`: the server decides."""
    top: int = Field(5, ge=1, le=1000)
    """Labels of each answer, best first; fewer where the model has fewer."""
    labels: Labels | None = None
    """Zero-shot: texts to choose from, by the dual encoder. None: the classifier and its own labels."""
    template: Template = PLACE
    """With `labels`: each label's sentence, with `{}` for the label, for example `a photo of {}`."""
    deadline_ms: float | None = Field(None, gt=0)
    """Milliseconds after which an answer is of no use; then 504. While streaming: of each line by itself."""


def _listed(samples: Any) -> Any:
    return [samples] if isinstance(samples, dict) else samples


def _or_one(schema: dict[str, Any]) -> None:
    """The documentation of a list that may also be one object."""
    one = schema["items"]
    schema["anyOf"] = [{"type": schema.pop("type"), "items": schema.pop("items"), "minItems": 1}, one]
    del schema["minItems"]


class ClassifyBody(ClassifyOptions):
    """Samples and how to answer them."""

    samples: Annotated[
        list[SampleBody], Field(min_length=1, json_schema_extra=_or_one), BeforeValidator(_listed)
    ]
    """One sample, or a list: one adaptation batch (up to the server's batch size)."""


class LiveOptions(ClassifyOptions):
    """Options of a streaming request; they hold for the whole of it."""

    batch: int | None = Field(None, ge=1)
    """With `adapt: sync`: lines that are asked together. None, and at most: the server's batch size."""
    max_wait_ms: float = Field(1000.0, ge=0, le=60_000)
    """With `adapt: sync`: milliseconds after which a batch is asked, though it is not full."""


class FirstMessage(Wire):
    """What a WebSocket may begin with."""

    options: LiveOptions | None = None
    key: str | None = Field(None, max_length=4096)
    """The API key, for browsers, which cannot send it as a header."""


OPTION_NAMES = frozenset(LiveOptions.model_fields) | {"options", "key"}


class LabelShown(Shown):
    label: str
    probability: float


Completer = Literal["", "model", "imputation"]


class SampleAnswerShown(Shown):
    id: str | None = None
    """As the sample had it; absent where it had none."""
    labels: list[LabelShown]
    """Best first."""
    entropy_nats: float
    """Of the probabilities of all labels: 0 is certain, log(number of labels) knows nothing."""
    missing: list[str]
    """Modalities that the sample lacked, of those that the classifier takes."""
    completed_by: Completer
    """What made up for them: the model's own path, or imputation. Empty: nothing was missing."""
    parts: dict[str, PartShown] | None = None
    """Audio, video, and what the classifier makes of both (fused); only where a calibration can complete."""
    novelty: float | None = None
    """0 to 1: the share of clean samples that are less unusual; absent or null where that is not known."""


class ClassifyAnswerShown(Shown):
    """Answers in the order of the samples, and what was done to get them."""

    results: list[SampleAnswerShown]
    adaptation: AdaptationShown
    timings_ms: TimingsShown
    stream: str
    model: str
    parts: list[AdaptationPartShown] | None = None
    """Only for a request that mixes kinds of samples: one entry a kind."""


class LineShown(Shown):
    """One line of a streamed answer: an answer, or an error."""

    index: int | None = None
    """Number of the line that was sent, from 0, blank ones left out; absent where the stream itself ends."""
    id: str | None = None
    labels: list[LabelShown] | None = None
    entropy_nats: float | None = None
    missing: list[str] | None = None
    completed_by: Completer | None = None
    parts: dict[str, PartShown] | None = None
    novelty: float | None = None
    adaptation: AdaptationShown | None = None
    timings_ms: TimingsShown | None = None
    error: dict[str, JsonValue] | None = None
    """{"code", "message", "details"}."""
