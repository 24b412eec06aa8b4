"""Items from the user's disk: folders, TSV and JSONL. Pictures are read one by one when they are sent."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PICTURES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
CAPTIONS = "captions.tsv"
HEADER = ("file", "caption")


def read_items(source: Path) -> list[dict[str, Any]]:
    """Items of a folder, a .tsv or a .jsonl; `image` is a path.

    Raises:
        ValueError: naming file and line, for what cannot be an item, for an id twice, and for nothing at all.
    """
    if source.is_dir():
        items = list(_of_folder(source))
    elif source.suffix == ".tsv":
        items = list(_of_captions(source))
    elif source.suffix in (".jsonl", ".ndjson"):
        items = list(_of_jsonl(source))
    else:
        raise ValueError(f"{source} is no folder, .tsv or .jsonl")
    if not items:
        raise ValueError(f"{source} holds no items (pictures are {', '.join(sorted(PICTURES))})")
    return items


def _of_folder(folder: Path) -> Iterator[dict[str, Any]]:
    """Every picture below `folder`; its id is its path from there. Captions where captions.tsv has them."""
    captions: dict[str, dict[str, Any]] = {}
    if (folder / CAPTIONS).is_file():
        captions = {item["id"]: item for item in _of_captions(folder / CAPTIONS)}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in PICTURES and path.is_file():
            id = path.relative_to(folder).as_posix()
            yield captions.get(id) or {"id": id, "image": path, "payload": {"file": id}}


def _of_captions(file: Path) -> Iterator[dict[str, Any]]:
    """FILE<TAB>CAPTION lines, after a header line `file<TAB>caption` or without one.

    Files are relative to the TSV's folder. Several lines of one file make one item: its text is the first
    caption, its payload has all.
    """
    captions: dict[str, list[str]] = {}
    for place, line in _lines(file):
        name, tab, caption = line.partition("\t")
        name, caption = Path(name.strip()).as_posix(), caption.strip()
        if not captions and (name.lower(), caption.lower()) == HEADER:
            continue
        if not tab or not caption:
            raise ValueError(f"{place}: a line is FILE<TAB>CAPTION")
        if not (file.parent / name).is_file():
            raise ValueError(f"{place}: there is no file {file.parent / name}")
        captions.setdefault(name, []).append(caption)
    for name, known in captions.items():
        payload: dict[str, Any] = {"file": name, "caption": known[0]}
        if len(known) > 1:
            payload["captions"] = known
        yield {"id": name, "image": file.parent / name, "text": known[0], "payload": payload}


def _of_jsonl(file: Path) -> Iterator[dict[str, Any]]:
    """One JSON object a line: id, and text, image (a path relative to the file), embeddings, payload."""
    seen: set[str] = set()
    for place, line in _lines(file):
        try:
            item = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from error
        if not _is_item(item):
            raise ValueError(f'{place}: a line is a JSON object with a text as "id"')
        _refuse_twice(seen, item["id"], place)
        if isinstance(item.get("image"), str) and not item["image"].startswith("data:"):
            item["image"] = file.parent / item["image"]
            if not item["image"].is_file():
                raise ValueError(f"{place}: there is no file {item['image']}")
        yield item


def _is_item(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("id"), str)


def _lines(file: Path) -> Iterator[tuple[str, str]]:
    """("captions.tsv:3", line) for each line that is not blank."""
    with file.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield f"{file}:{number}", line.rstrip("\r\n")


def _refuse_twice(seen: set[str], id: str, place: str) -> None:
    if id in seen:
        raise ValueError(f"{place}: {id!r} is there twice")
    seen.add(id)
