"""The wire: what clients send and get. Unknown fields are refused; limits that are settings are checked
beside the schema (`bodies.py`, `queries.py`), because a schema is the same for every server.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self

from fastapi import Path
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from service.messages import WHAT_A_QUERY_IS
from service.settings import GALLERY_NAME, STREAM_NAME


def _finite(value: Any) -> Any:
    """JSON has no NaN, and an answer that holds one could not be sent."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("NaN and infinity are no JSON values")
    if isinstance(value, dict):
        for inner in value.values():
            _finite(inner)
    elif isinstance(value, list):
        for inner in value:
            _finite(inner)
    return value


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("a text needs at least one character that is not blank")
    return text


JsonObject = Annotated[dict[str, Any], AfterValidator(_finite)]
Text = Annotated[str, AfterValidator(_not_blank)]
Vector = Annotated[list[float], Field(min_length=1)]
ItemId = Annotated[str, Field(min_length=1, max_length=512)]
GalleryName = Annotated[str, Field(min_length=1, max_length=64, pattern=GALLERY_NAME)]
StreamName = Annotated[str, Field(min_length=1, max_length=128, pattern=STREAM_NAME)]
SnapshotName = Annotated[str, Field(min_length=1, max_length=64, pattern=STREAM_NAME)]
CalibrationName = Annotated[str, Field(min_length=1, max_length=64, pattern=STREAM_NAME)]
NameOrEmpty = Annotated[str, Field(max_length=64, pattern=f"^(?:{STREAM_NAME[1:-1]})?$")]

GalleryPath = Annotated[
    str, Path(max_length=64, pattern=GALLERY_NAME, description="Name of the gallery.", examples=["demo"])
]
StreamPath = Annotated[
    str, Path(max_length=128, pattern=STREAM_NAME, description="Name of the stream.", examples=["default"])
]
SnapshotPath = Annotated[
    str, Path(max_length=64, pattern=STREAM_NAME, description="Name of the snapshot.", examples=["before"])
]

CalibrationPath = Annotated[
    str,
    Path(max_length=64, pattern=STREAM_NAME, description="Name of the calibration.", examples=["encoder"]),
]


class Wire(BaseModel):
    """Base of what clients send."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True, use_attribute_docstrings=True)


class QueryBody(Wire):
    """One query: a text, a picture or both together (one composed query), or an embedding alone."""

    text: Text | None = None
    """What to look for, in words."""
    image: str | None = None
    """A picture (PNG, JPEG, WebP, GIF, BMP, TIFF) as base64 without line breaks, or as a data URI."""
    embedding: Vector | None = None
    """A ready vector of the encoder's dimension; its length does not matter, zero is refused."""

    @model_validator(mode="after")
    def _is_one_query(self) -> Self:
        composed = self.text is not None or self.image is not None
        if composed == (self.embedding is not None):
            raise ValueError(WHAT_A_QUERY_IS)
        return self


class RetrieveOptions(Wire):
    """How to answer; the same for JSON, forms and raw pictures."""

    gallery: GalleryName | None = None
    """Gallery to search; the server's default gallery if none is named."""
    stream: StreamName = "default"
    """Whose queries these are: queries of one stream share what was learnt from them."""
    k: int = Field(10, ge=1)
    """Hits of each query, best first."""
    target: Literal["auto", "image", "text", "anchor"] = "auto"
    """What of the items is compared: pictures, texts, or the anchors that a calibration makes of both.
    `auto`: anchors where the gallery has a calibration, else the other modality than the query's."""
    adapt: Literal["auto", "sync", "async", "off"] = "auto"
    """`sync`: adapt to these queries before answering. `async`: answer at once, adapt in the background.
    `off`: the unadapted model. `auto`: the server decides."""
    filter: JsonObject | None = None
    """Only items whose payload matches: `{"colour": "red", "price": {"lt": 5}}`."""
    deadline_ms: float | None = Field(None, gt=0)
    """Milliseconds after which the answer is of no use; then 504."""


class RetrieveBody(RetrieveOptions):
    """Queries and how to answer them."""

    queries: list[QueryBody] = Field(min_length=1)
    """One or more queries. A list is one adaptation batch (up to the server's batch size)."""


class NewGallery(Wire):
    """A gallery to create."""

    name: GalleryName
    """Lower-case letters, digits, `.`, `_`, `-`."""
    index: JsonObject | None = None
    """How vectors are searched, for example `{"kind": "flat"}`; kinds: flat, ivf, hnsw, torch."""
    calibration: CalibrationName | None = None
    """What completes items and queries that lack a picture or a text (docs/missing.md); it stays the
    gallery's. `GET /admin/calibrations` lists them."""


class NewCalibration(Wire):
    """A calibration to fit to the items of a gallery that have both a picture and a text."""

    name: CalibrationName
    """Letters, digits, `.`, `_`, `-`."""
    gallery: GalleryName
    """Whose items show what a picture says of its text and the other way round."""
    latent: int | None = Field(None, ge=1, le=1024)
    """Numbers that both share; None: as many as impute best."""
    samples: int = Field(5000, ge=8)
    """Most items to fit to; where there are more, so many are drawn at random."""


class ItemEmbeddings(Wire):
    """Ready vectors of an item by modality."""

    image: Vector | None = None
    text: Vector | None = None


class ItemBody(Wire):
    """An item: at least one of `text`, `image`, `embeddings`."""

    id: ItemId
    """Unique in the gallery; an item of the same id is replaced."""
    text: Text | None = None
    """A caption; makes the item findable by pictures."""
    image: str | None = None
    """A picture as base64 or data URI; makes the item findable by texts."""
    embeddings: ItemEmbeddings | None = None
    """Ready vectors, made by the same encoder, in place of text or image."""
    payload: JsonObject = Field(default_factory=dict)
    """Any JSON object; returned with each hit, and what filters look at."""

    @model_validator(mode="after")
    def _something_to_find(self) -> Self:
        vectors = self.embeddings
        embedded = vectors is not None and (vectors.image is not None or vectors.text is not None)
        if self.text is None and self.image is None and not embedded:
            raise ValueError("an item needs at least one of text, image, embeddings")
        return self


class ItemsBody(Wire):
    """Items to add or replace; all or none."""

    items: list[ItemBody] = Field(min_length=1)


class ItemIds(Wire):
    """Items to remove."""

    ids: list[ItemId] = Field(min_length=1)


class CanaryBody(Wire):
    """A query whose right answer is known: a text, a picture, or both together."""

    text: Text | None = None
    image: str | None = None
    """A picture as base64 or data URI."""
    answer: ItemId
    """The item of the gallery that is right for it."""

    @model_validator(mode="after")
    def _is_a_query(self) -> Self:
        if self.text is None and self.image is None:
            raise ValueError("a canary is a text, a picture or both together")
        return self


class CanariesBody(Wire):
    """The canaries of a gallery; they replace those before. An empty list removes them."""

    canaries: list[CanaryBody]


class StreamConfiguration(Wire):
    """What a stream adapts with. A change of the method drops what was learnt."""

    method: str | None = Field(None, min_length=1, max_length=64)
    """Adaptation method; `GET /models` lists them. None: keep, or the default for a new stream."""
    task: Literal["retrieve", "classify"] | None = None
    """What the method is for. None: the only task that has a method of that name."""
    settings: JsonObject | None = None
    """Settings of the method over its defaults."""
    pinned: bool | None = None
    """Whether the stream stays in memory whatever comes, and never expires. None: keep."""
    guard: JsonObject | None = None
    """Settings of its guard over the server's, for example `{"policy": "warn"}`. None: keep."""
    calibration: NameOrEmpty | None = None
    """What completes its queries or samples, in place of what their gallery or classifier has; which of
    them, says the calibration. Empty: detach that of `task`, or all. None: keep."""


class NewSnapshot(Wire):
    """A snapshot to take."""

    name: SnapshotName | None = None
    """None: the server chooses one."""
    note: str = Field("", max_length=1000)
    """A line for people."""


class Shown(BaseModel):
    """Base of what clients get: for the documentation, never run over an answer."""

    model_config = ConfigDict(use_attribute_docstrings=True, extra="allow")


class ErrorDetails(Shown):
    code: str
    """Stable, for programs."""
    message: str
    """For people."""
    details: dict[str, Any]
    """More, by code: the fields of a schema error, the seconds to wait."""


class ErrorBody(Shown):
    """Every failure has this body."""

    error: ErrorDetails


class PartShown(Shown):
    """A picture or a text, of an item or a query."""

    observed: bool
    """Whether it was given; else it was imputed from the other."""
    confidence: float
    """How much of it is known, 0 to 1; 1 where it was given."""


class Hit(Shown):
    id: str
    score: float
    """Cosine similarity, -1 to 1."""
    payload: dict[str, Any]
    parts: dict[str, PartShown] | None = None
    """Of the item, `image` and `text`; only where anchors were searched."""
    preview: str | None = None
    """Where a small picture of the item is had; absent where the gallery keeps none."""


class CompletenessShown(Shown):
    """What a query had and what was imputed."""

    parts: dict[str, PartShown]
    novelty: float | None
    """Share of the clean samples of the calibration that are less unusual, 0 to 1; null: not known."""


class QueryResult(Shown):
    hits: list[Hit]
    """Best first."""
    query: CompletenessShown | None = None
    """Only where anchors were searched, and not by an embedding."""


class AdaptationShown(Shown):
    """What happened to the batch that the queries were part of."""

    method: str
    mode: str
    direction: str
    """Kind of query and searched modality, for example `text->image`; `mixed`: see `parts`."""
    state_version: int | None
    """Version of the state that ranked the answer; grows with each applied batch."""
    status: Literal["applied", "applying", "queued", "skipped", "undone", "off", "mixed"]
    """applied: all updates are in. applying: answered before the last update. queued: will adapt in the
    background. skipped, undone, off: did not adapt, see `reason`."""
    reason: str
    batch_size: int | None
    """Queries that were encoded together."""


class AdaptationPartShown(AdaptationShown):
    query_indices: list[int]


class TimingsShown(Shown):
    """Milliseconds."""

    wait: float
    encode: float
    search: float
    adapt: float
    total: float


class RetrieveAnswerShown(Shown):
    """Hits in the order of the queries, and what was done to get them."""

    results: list[QueryResult]
    adaptation: AdaptationShown
    timings_ms: TimingsShown
    gallery: str
    stream: str
    parts: list[AdaptationPartShown] | None = None
    """Only for a request that mixes kinds of queries: one entry a kind."""


class GalleryShown(Shown):
    name: str
    items: int
    targets: dict[str, int]
    """Vectors by modality, and anchors."""
    calibration: str | None = None
    """The one that completes its items and their queries."""


class GalleriesShown(Shown):
    galleries: list[GalleryShown]


class ItemShown(Shown):
    id: str
    payload: dict[str, Any]
    preview: str | None = None
    """As in a hit."""


class ItemPage(Shown):
    items: list[ItemShown]
    total: int


class CanariesShown(Shown):
    gallery: str
    canaries: list[dict[str, Any]]


class Upserted(Shown):
    added: int
    replaced: int
    items: int
    """Items of the gallery afterwards."""


class Deleted(Shown):
    deleted: int


class StreamShown(Shown):
    name: str
    pinned: bool
    method: str
    calibrations: dict[str, dict[str, str]]
    """What completes its queries, by task: name, digest, and a warning where new tracks go without."""
    version: int
    """Applied batches over all tracks since the source state."""


class StreamsShown(Shown):
    streams: list[StreamShown]


class CalibrationShown(Shown):
    name: str
    digest: str
    """Of the file; galleries and streams keep it beside the name."""
    status: Literal["ready", "refused"]
    """refused: it cannot be used here, see `why`."""
    task: str | None = None
    """retrieve: of the encoder; classify: of the classifier."""
    latent: int | None = None
    """Numbers that the modalities share."""
    samples: int | None = None
    """That it was fitted to."""
    relative_error: dict[str, float] | None = None
    """Of imputing each modality from the others, for samples held out: squared error over that of always
    saying the mean. 0 is perfect, 1 is of no use."""


class CalibrationsShown(Shown):
    calibrations: list[CalibrationShown]


class SnapshotShown(Shown):
    stream: str
    name: str


class HistoryColumns(Shown):
    """A track's last 240 batches; all columns have one length. null: not known of that batch."""

    at: list[float]
    """Seconds since 1970."""
    batch: list[int]
    """Number among the track's batches, from 1."""
    version: list[int]
    status: list[Literal["applied", "skipped", "undone"]]
    modality_gap: list[float | None]
    modality_gap_target: list[float | None]
    uniformity: list[float | None]
    entropy_nats: list[float | None]
    source_likeness: list[float | None]
    shift: list[float | None]
    loss: list[float | None]


class HistoryShown(Shown):
    stream: str
    tracks: dict[str, HistoryColumns]


class ComparedSide(Shown):
    name: str | None
    """None: the stream as it is."""
    created_at: float
    version: int
    batches: int
    method: str
    settings: dict[str, Any]
    classify: dict[str, Any] | None
    calibrations: dict[str, dict[str, str]]


class TrackSide(Shown):
    version: int
    batches: int
    applied: int
    skipped: int
    undone: int
    drift: dict[str, float | None] | None
    losses: dict[str, float | None] | None
    distance_from_source: float | None
    memory_size: int


class ComparedParameter(Shown):
    name: str
    size: int
    distance: float
    """Its part of the track's: the squares of all parameters add up to the square of that."""


class ComparedTrack(Shown):
    in_: Literal["both", "first", "second"] = Field(alias="in")
    first: TrackSide | None
    second: TrackSide | None
    distance: float | None
    """Length of the difference of the parameters that both have, over that of their source values."""
    parameters: list[ComparedParameter]
    """The farthest, at most 12."""


class ComparisonShown(Shown):
    stream: str
    first: ComparedSide
    second: ComparedSide
    tracks: dict[str, ComparedTrack]


class SnapshotsShown(Shown):
    snapshots: list[SnapshotShown]


class StatusShown(Shown):
    status: str


class ClipShown(Shown):
    """A clip of the demo; audio and image are paths on this server."""

    id: str
    label: str
    audio: str
    image: str


class ClipsShown(Shown):
    labels: list[str]
    """All that the classifier knows."""
    clips: list[ClipShown]


class ConsoleConfigShown(Shown):
    """What a page has to know of a server before it asks anything. No secrets."""

    version: str
    keys: dict[str, bool]
    """admin, api: whether the server asks for such a key."""
    default_gallery: str
    preview_pixels: int
    """Longest side of the pictures that galleries keep to show; 0: none."""
    demo: dict[str, bool]
    """clips: whether /demo/clips is there."""
    corruptions: bool
    """Whether /corruptions is there."""
    limits: dict[str, float]
    """Most of everything that a page sends or asks for."""
