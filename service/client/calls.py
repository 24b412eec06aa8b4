"""The requests that both clients send. Each function builds one; nothing here talks to anyone."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, Generic, Protocol, TypeAlias, TypeVar, cast
from urllib.parse import quote

import httpx

from service.client.types import Answer, AttuneError, Card, ClassifyAnswer

Result = TypeVar("Result")
Result_co = TypeVar("Result_co", covariant=True)

BATCH_CHARACTERS = 16 * 1024 * 1024
"""A batch of items is sent once its pictures and texts have so many characters."""


class PillowImage(Protocol):
    """A picture of Pillow, without importing it."""

    def save(self, fp: Any, format: str) -> None: ...


Image: TypeAlias = "bytes | PathLike[str] | str | PillowImage"
"""A picture: its bytes, a path to it, a data URI, or a Pillow image."""
Vector: TypeAlias = Sequence[float]
QueryLike: TypeAlias = "str | bytes | PathLike[str] | PillowImage | Vector | Mapping[str, Any]"
"""A text; a picture; an embedding; or the JSON object of a query, whose image may be any picture."""


@dataclass(frozen=True)
class Call(Generic[Result_co]):
    """One request, and how its answer is read."""

    method: str
    path: str
    read: Callable[[httpx.Response], Result_co]
    json: Any = None
    params: Mapping[str, Any] = field(default_factory=dict)
    content: bytes | None = None


def retrieve(queries: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> Call[Answer]:
    given = {name: value for name, value in options.items() if value is not None}
    return Call("POST", "/retrieve", _answer, json={"queries": list(queries), **given})


def query_bodies(
    queries: QueryLike | Iterable[QueryLike] | None,
    *,
    text: str | Sequence[str] | None,
    image: Image | Sequence[Image] | None,
    embedding: Vector | Sequence[Vector] | None,
) -> list[dict[str, Any]]:
    """Everything that was given as queries, in this order. Raises ValueError if it is nothing."""
    bodies: list[dict[str, Any]] = []
    if queries is not None:
        bodies += [query_body(query) for query in _each_query(queries)]
    if text is not None:
        bodies += [{"text": each} for each in ([text] if isinstance(text, str) else text)]
    if image is not None:
        images = image if isinstance(image, list | tuple) else [image]
        bodies += [{"image": image_text(cast(Image, each))} for each in images]
    if embedding is not None:
        bodies += [{"embedding": each} for each in _vectors(embedding)]
    if not bodies:
        raise ValueError("nothing to look for: give queries, text, image or embedding")
    return bodies


def query_body(query: QueryLike) -> dict[str, Any]:
    """The JSON of one query. A plain `str` is a text here, never a path."""
    if isinstance(query, str):
        return {"text": query}
    if isinstance(query, Mapping):
        body = dict(query)
        return body | {"image": image_text(body["image"])} if body.get("image") is not None else body
    if isinstance(query, bytes | PathLike) or hasattr(query, "save"):
        return {"image": image_text(cast(Image, query))}
    return {"embedding": _numbers(query)}


def image_text(image: Image) -> str:
    """A picture as it travels in JSON. A `str` is a data URI, or a path that is read here."""
    if isinstance(image, str) and image.startswith("data:"):
        return image
    if isinstance(image, str | PathLike):
        data = Path(image).read_bytes()
    elif isinstance(image, bytes):
        data = image
    else:
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        data = buffer.getvalue()
    return base64.b64encode(data).decode("ascii")


File: TypeAlias = "bytes | PathLike[str] | str"
"""A sound or a clip: its bytes, a path to it, or a data URI."""
SampleLike: TypeAlias = Mapping[str, Any]
"""The JSON object of a sample; its `audio` and `clip` may be files, its `image` and `frames` pictures, its
`fbank` an array."""


def classify(samples: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> Call[ClassifyAnswer]:
    given = {name: value for name, value in options.items() if value is not None}
    return Call("POST", "/classify", _classified, json={"samples": list(samples), **given})


def sample_bodies(samples: SampleLike | Iterable[SampleLike] | None, **one: Any) -> list[dict[str, Any]]:
    """The samples that were given, or the one of the fields. Raises ValueError for both and for neither."""
    given = {name: value for name, value in one.items() if value is not None}
    if (samples is None) != bool(given):
        raise ValueError("give samples, or audio, image, clip or text of one sample")
    if samples is None:
        samples = [given]
    listed = [samples] if isinstance(samples, Mapping) else list(samples)
    if not listed:
        raise ValueError("nothing to classify: there are no samples")
    return [sample_body(sample) for sample in listed]


def sample_body(sample: SampleLike) -> dict[str, Any]:
    """The JSON of one sample."""
    body = {name: value for name, value in sample.items() if value is not None}
    for name in ("audio", "clip"):
        if name in body:
            body[name] = file_text(body[name])
    if "image" in body:
        body["image"] = image_text(body["image"])
    if "frames" in body:
        body["frames"] = [image_text(frame) for frame in body["frames"]]
    if "fbank" in body:
        body["fbank"] = [_numbers(row) for row in body["fbank"]]
    return body


def file_text(file: File) -> str:
    """A file as it travels in JSON. A `str` is a data URI, or a path that is read here."""
    if isinstance(file, str) and file.startswith("data:"):
        return file
    data = file if isinstance(file, bytes) else Path(file).read_bytes()
    return base64.b64encode(data).decode("ascii")


def item_body(item: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON of one gallery item, whose image may be any picture."""
    body = {name: value for name, value in item.items() if value is not None}
    if "image" in body:
        body["image"] = image_text(body["image"])
    if "embeddings" in body:
        body["embeddings"] = {name: _numbers(vector) for name, vector in body["embeddings"].items()}
    return body


def item_batches(items: Iterable[Mapping[str, Any]], batch_size: int) -> Iterator[list[dict[str, Any]]]:
    """Items in lists of at most `batch_size`, fewer where pictures are large; never an empty list."""
    batch: list[dict[str, Any]] = []
    characters = 0
    for item in items:
        body = item_body(item)
        size = len(body.get("image", "")) + len(body.get("text", ""))
        if batch and (len(batch) >= batch_size or characters + size > BATCH_CHARACTERS):
            yield batch
            batch, characters = [], 0
        batch.append(body)
        characters += size
    if batch:
        yield batch


class Tally:
    """The sum over the batches of a bulk upsert."""

    def __init__(self, on_progress: Callable[[int], None] | None) -> None:
        self._on_progress = on_progress
        self._sent = 0
        self.total: Card = {"added": 0, "replaced": 0, "items": None}

    def add(self, sent: int, answer: Card) -> None:
        self._sent += sent
        self.total["added"] += answer["added"]
        self.total["replaced"] += answer["replaced"]
        self.total["items"] = answer["items"]
        if self._on_progress is not None:
            self._on_progress(self._sent)


def corruptions() -> Call[Card]:
    return Call("GET", "/corruptions", _card)


def corrupt(
    corruption: str,
    *,
    text: str | Sequence[str] | None,
    image: Image | Sequence[Image] | None,
    audio: File | Sequence[File] | None,
    options: Mapping[str, Any],
) -> Call[list[str | bytes]]:
    """Raises ValueError unless exactly one of text, image and audio is given."""
    if sum(part is not None for part in (text, image, audio)) != 1:
        raise ValueError("give text, image or audio: one of them, one or several")
    queries = [{"text": each} for each in _several(text)]
    queries += [{"image": image_text(each)} for each in _several(image)]
    queries += [{"audio": file_text(each)} for each in _several(audio)]
    given = {name: value for name, value in options.items() if value is not None}
    body = {"corruption": corruption, "queries": queries, **given}
    return Call("POST", "/corruptions", _corrupted, json=body)


def _several(given: Any) -> Sequence[Any]:
    if given is None:
        return []
    return given if isinstance(given, list | tuple) else [given]


def _corrupted(response: httpx.Response) -> list[str | bytes]:
    """Texts as they are, pictures and sounds as the bytes of their files."""
    return [
        query["text"]
        if "text" in query
        else base64.b64decode(next(iter(query.values())).partition(";base64,")[2])
        for query in response.json()["queries"]
    ]


def models() -> Call[Card]:
    return Call("GET", "/models", _card)


def list_galleries() -> Call[list[Card]]:
    return Call("GET", "/galleries", _listed("galleries"))


def describe_gallery(name: str) -> Call[Card]:
    return Call("GET", _path("galleries", name), _card)


def create_gallery(name: str, index: Mapping[str, Any] | None, calibration: str | None = None) -> Call[Card]:
    given = {"name": name, "index": None if index is None else dict(index), "calibration": calibration}
    body = {name: value for name, value in given.items() if value is not None}
    return Call("POST", "/galleries", _card, json=body)


def delete_gallery(name: str) -> Call[None]:
    return Call("DELETE", _path("galleries", name), _nothing)


def upsert_items(gallery: str, items: Sequence[Mapping[str, Any]]) -> Call[Card]:
    return Call("POST", _path("galleries", gallery, "items"), _card, json={"items": list(items)})


def delete_items(gallery: str, ids: Sequence[str]) -> Call[int]:
    path = _path("galleries", gallery, "items", "delete")
    return Call("POST", path, lambda response: int(_card(response)["deleted"]), json={"ids": list(ids)})


def get_item(gallery: str, id: str) -> Call[Card]:
    return Call("GET", _path("galleries", gallery, "items", id), _card)


def list_items(gallery: str, offset: int, limit: int) -> Call[Card]:
    params = {"offset": offset, "limit": limit}
    return Call("GET", _path("galleries", gallery, "items"), _card, params=params)


def preview(gallery: str, id: str) -> Call[bytes]:
    return Call("GET", _path("galleries", gallery, "previews", id), lambda response: response.content)


def set_canaries(gallery: str, canaries: Sequence[Mapping[str, Any]]) -> Call[Card]:
    bodies = [item_body(canary) for canary in canaries]
    return Call("PUT", _path("galleries", gallery, "canaries"), _card, json={"canaries": bodies})


def describe_canaries(gallery: str) -> Call[Card]:
    return Call("GET", _path("galleries", gallery, "canaries"), _card)


def list_calibrations() -> Call[list[Card]]:
    return Call("GET", "/admin/calibrations", _listed("calibrations"))


def describe_calibration(name: str) -> Call[Card]:
    return Call("GET", _path("admin", "calibrations", name), _card)


def fit_calibration(name: str, gallery: str, latent: int | None, samples: int | None) -> Call[Card]:
    given = {"name": name, "gallery": gallery, "latent": latent, "samples": samples}
    body = {name: value for name, value in given.items() if value is not None}
    return Call("POST", "/admin/calibrations", _card, json=body)


def add_calibration(name: str, data: bytes) -> Call[Card]:
    return Call("POST", "/admin/calibrations", _card, params={"name": name}, content=data)


def export_calibration(name: str) -> Call[bytes]:
    return Call("GET", _path("admin", "calibrations", name, "export"), lambda response: response.content)


def delete_calibration(name: str) -> Call[None]:
    return Call("DELETE", _path("admin", "calibrations", name), _nothing)


def list_streams() -> Call[list[Card]]:
    return Call("GET", "/admin/streams", _listed("streams"))


def stream_history(name: str) -> Call[Card]:
    return Call("GET", _stream(name, "history"), _card)


def describe_stream(name: str) -> Call[Card]:
    return Call("GET", _stream(name), _card)


def configure_stream(
    name: str,
    method: str | None,
    settings: Mapping[str, Any] | None,
    pinned: bool | None,
    guard: Mapping[str, Any] | None,
    task: str | None,
    calibration: str | None = None,
) -> Call[Card]:
    given: dict[str, Any] = {
        "method": method,
        "task": task,
        "settings": None if settings is None else dict(settings),
        "pinned": pinned,
        "guard": None if guard is None else dict(guard),
        "calibration": calibration,
    }
    body = {name: value for name, value in given.items() if value is not None}
    return Call("PUT", _stream(name), _card, json=body)


def reset_stream(name: str) -> Call[Card]:
    return Call("POST", _stream(name, "reset"), _card)


def delete_stream(name: str, force: bool) -> Call[None]:
    return Call("DELETE", _stream(name), _nothing, params={"force": "true"} if force else {})


def list_snapshots(stream: str) -> Call[list[Card]]:
    return Call("GET", _stream(stream, "snapshots"), _listed("snapshots"))


def create_snapshot(stream: str, name: str | None, note: str) -> Call[Card]:
    body = {"note": note} if name is None else {"name": name, "note": note}
    return Call("POST", _stream(stream, "snapshots"), _card, json=body)


def restore_snapshot(stream: str, name: str) -> Call[Card]:
    return Call("POST", _stream(stream, "snapshots", name, "restore"), _card)


def compare_snapshots(stream: str, first: str, second: str | None) -> Call[Card]:
    params = {} if second is None else {"with": second}
    return Call("GET", _stream(stream, "snapshots", first, "compare"), _card, params=params)


def delete_snapshot(stream: str, name: str) -> Call[None]:
    return Call("DELETE", _stream(stream, "snapshots", name), _nothing)


def export_snapshot(stream: str, name: str) -> Call[bytes]:
    return Call("GET", _stream(stream, "snapshots", name, "export"), lambda response: response.content)


def import_snapshot(stream: str, data: bytes, name: str | None) -> Call[Card]:
    params = {} if name is None else {"name": name}
    return Call("POST", _stream(stream, "snapshots", "import"), _card, params=params, content=data)


def error_of(response: httpx.Response) -> AttuneError:
    """The server's error; for an answer in another shape (a proxy's page), what can be said of it."""
    try:
        error = response.json()["error"]
        return AttuneError(
            str(error["code"]), str(error["message"]), details=error["details"], status=response.status_code
        )
    except (ValueError, KeyError, TypeError):
        message = f"HTTP {response.status_code} {response.reason_phrase} from {response.request.url}"
        return AttuneError("bad_answer", message, status=response.status_code)


def _path(*parts: str) -> str:
    return "/" + "/".join(quote(part, safe="") for part in parts)


def _stream(*parts: str) -> str:
    return _path("admin", "streams", *parts)


def _card(response: httpx.Response) -> Card:
    try:
        return cast(Card, response.json())
    except ValueError as error:
        raise AttuneError(
            "bad_answer", f"no JSON from {response.request.url}; is it an Attune server?",
            status=response.status_code,
        ) from error  # fmt: skip


def _answer(response: httpx.Response) -> Answer:
    return Answer.of_json(_card(response))


def _classified(response: httpx.Response) -> ClassifyAnswer:
    return ClassifyAnswer.of_json(_card(response))


def _listed(name: str) -> Callable[[httpx.Response], list[Card]]:
    return lambda response: cast(list[Card], _card(response)[name])


def _nothing(response: httpx.Response) -> None:
    return None


def _each_query(queries: QueryLike | Iterable[QueryLike]) -> list[QueryLike]:
    """One query or several: a list of numbers is one embedding, any other list is several queries."""
    if isinstance(queries, str | bytes | PathLike | Mapping) or hasattr(queries, "save"):
        return [cast(QueryLike, queries)]
    listed = list(cast(Iterable[Any], queries))
    return [cast(QueryLike, listed)] if listed and _is_number(listed[0]) else listed


def _vectors(embedding: Vector | Sequence[Vector]) -> list[list[float]]:
    listed = list(embedding)
    if listed and _is_number(listed[0]):
        return [_numbers(cast(Vector, listed))]
    return [_numbers(cast(Vector, vector)) for vector in listed]


def _is_number(value: Any) -> bool:
    return hasattr(value, "__float__") and not hasattr(value, "__len__")


def _numbers(vector: Vector) -> list[float]:
    return [float(number) for number in vector]
