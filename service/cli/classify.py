"""`attune classify`: labels of sounds, pictures and clips from the terminal, one by one or streaming."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.cli.common import FAILED, AsJson, Url, connected, fail, show_json, show_table
from service.cli.sources import PICTURES

if TYPE_CHECKING:
    from service.client import ClassifyAnswer

SOUNDS = frozenset({".wav", ".flac", ".ogg", ".oga", ".opus"})
CLIPS = frozenset({".mp4", ".mov", ".webm", ".mkv", ".avi"})


def classify(
    files: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[FILE]...", help="Sounds, pictures and clips, a sample each."),
    ] = None,
    audio: Annotated[Path | None, typer.Option("--audio", "-a", help="The sound of one sample.")] = None,
    image: Annotated[Path | None, typer.Option("--image", "-i", help="Its picture.")] = None,
    text: Annotated[
        list[str] | None, typer.Option("--text", help="A text, with --labels; repeatable.")
    ] = None,
    labels: Annotated[
        list[str] | None,
        typer.Option("--labels", "-l", help="A label to choose from, by the dual encoder; repeatable."),
    ] = None,
    template: Annotated[str | None, typer.Option(help="Each label's sentence: 'a photo of {}'.")] = None,
    top: Annotated[int | None, typer.Option("-k", "--top", help="Labels of each answer.")] = None,
    stream: Annotated[str | None, typer.Option(help="Whose samples these are.")] = None,
    adapt: Annotated[str | None, typer.Option(help="auto, sync, async or off.")] = None,
    ndjson: Annotated[
        bool, typer.Option("--ndjson", help="Samples as lines of JSON on stdin, answers on stdout.")
    ] = False,
    batch: Annotated[
        int | None, typer.Option(help="With --ndjson and --adapt sync: lines of a batch.")
    ] = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Label sounds, pictures and clips by the classifier, or pictures and texts by --labels."""
    options: dict[str, Any] = {
        "labels": labels,
        "template": template,
        "top": top,
        "stream": stream,
        "adapt": adapt,
    }
    samples = _samples(files or [], audio, image, text or [])
    if ndjson:
        if samples:
            raise typer.BadParameter("with --ndjson the samples come on stdin")
        _stream(url, options | {"batch": batch})
        return
    if not samples:
        raise typer.BadParameter("give a file, --audio, --image, --text, or --ndjson")
    if batch is not None:
        raise typer.BadParameter("--batch goes with --ndjson")
    with connected(url) as client:
        answer = client.classify([fields for _, fields in samples], **options)
        _show(answer, [name for name, _ in samples], as_json)


def _samples(
    files: Iterable[Path], audio: Path | None, image: Path | None, texts: Iterable[str]
) -> list[tuple[str, dict[str, Any]]]:
    """Name and fields of each sample. Raises typer.BadParameter for a file of no known kind."""
    samples: list[tuple[str, dict[str, Any]]] = [(str(path), {_kind(path): path}) for path in files]
    pair = {name: path for name, path in (("audio", audio), ("image", image)) if path is not None}
    if pair:
        samples.append((" + ".join(str(path) for path in pair.values()), pair))
    return samples + [(text, {"text": text}) for text in texts]


def _kind(path: Path) -> str:
    for kind, endings in (("audio", SOUNDS), ("image", PICTURES), ("clip", CLIPS)):
        if path.suffix.lower() in endings:
            return kind
    known = ", ".join(sorted(SOUNDS | PICTURES | CLIPS))
    raise typer.BadParameter(f"{path}: the name's ending says neither sound, picture nor clip ({known})")


def _stream(url: str | None, options: Mapping[str, Any]) -> None:
    """Pass lines on as they come; each answer is written out at once. Exit code 1 if one failed."""
    failed = 0
    with connected(url) as client:
        for answer in client.classify_lines(_lines(), options):
            failed += "error" in answer
            sys.stdout.write(json.dumps(answer, ensure_ascii=False) + "\n")
            sys.stdout.flush()
    if failed:
        fail(f"{failed} lines failed; their answers say why", FAILED)


def _lines() -> Iterator[str]:
    """Lines of stdin that are not blank, as soon as they are there.

    Not by `sys.stdin`: whoever waits in it holds its lock, and could not be left waiting at the end.
    """
    begun = bytearray()
    while chunk := os.read(sys.stdin.fileno(), 1 << 16):
        begun += chunk
        if b"\n" in chunk:
            *whole, begun = begun.split(b"\n")
            yield from (line.decode("utf-8", "replace") for line in whole if line.strip())
    if begun.strip():
        yield begun.decode("utf-8", "replace")


def _show(answer: ClassifyAnswer, names: list[str], as_json: bool) -> None:
    if as_json:
        from dataclasses import asdict

        show_json(asdict(answer))
        return
    for name, classified in zip(names, answer.results, strict=True):
        lacks = f"  (without {', '.join(classified.missing)})" if classified.missing else ""
        if len(names) > 1 or lacks:
            typer.echo(f"{name}:{lacks}")
        rows = [
            {"rank": i, "probability": f"{label.probability:.4f}", "label": label.label}
            for i, label in enumerate(classified.labels, start=1)
        ]
        show_table(rows, ("rank", "probability", "label"), False)
    for done in answer.parts or (answer.adaptation,):
        why = f" ({done.reason})" if done.reason else ""
        typer.echo(
            f"{done.direction}: {done.method} {done.mode}, {done.status}{why}, state {done.state_version}; "
            f"{answer.timings_ms['total']:.1f} ms",
            err=True,
        )
