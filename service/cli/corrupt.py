"""`attune corrupt`: a corrupted copy of a folder, to see what drift does before it happens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from service.cli.common import WRONG_USE, fail

if TYPE_CHECKING:
    from benchmarks.corruptions import Shift, TextTools

StyleName = Literal["imagenet_c", "mm_robustness"]


def corrupt(
    source: Annotated[Path, typer.Argument(help="Folder of pictures, with or without a captions.tsv.")],
    out: Annotated[Path, typer.Option(help="Folder to write: new, or left unfinished by this command.")],
    shift: Annotated[
        list[str],
        typer.Option(
            metavar="NAME:SEVERITY",
            help="fog:5 for pictures, OCR:7 for captions; give both to corrupt both. docs/corruptions.md "
            "lists all.",
        ),
    ],
    seed: Annotated[int, typer.Option(min=0, help="What is drawn; the same seed gives the same copy.")] = 0,
    style: Annotated[
        StyleName | None,
        typer.Option(help="Of pictures: as ImageNet-C (the default), or as COCO-C and Flickr-C were made."),
    ] = None,
    quality: Annotated[
        int | None,
        typer.Option(min=1, max=100, help="Of JPEG and WebP; else as the style's released sets: 85 or 95."),
    ] = None,
    scale: Annotated[bool, typer.Option("--scale", help="Blur less in pictures below 224 pixels.")] = False,
    wordnet: Annotated[
        Path | None,
        typer.Option(help="WordNet's folder dict/, for SR and RI, if not found by itself."),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=MODEL", help="What Formal, Casual, Passive, Active, Backtrans use."),
    ] = None,
    similarity: Annotated[
        str | None, typer.Option(help="Sentence encoder; captions less than 0.9 similar are redrawn.")
    ] = None,
    device: Annotated[str, typer.Option(help="Of these models: cpu, cuda.")] = "cpu",
) -> None:
    """Write a corrupted copy of a folder; started again, it goes on where it stopped."""
    try:
        from benchmarks.corruptions import Shift
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "benchmarks":
            raise
        fail(
            "`attune corrupt` needs the package `benchmarks`, which Attune's wheel and source contain and "
            "this installation lacks; install Attune anew",
            WRONG_USE,
        )
    try:
        shifts = [_styled(Shift.parse(name), name, style) for name in shift]
        about = {**({"models": ", ".join(model)} if model else {}), "similarity": similarity or ""}
        tools = _tools(wordnet, model or [], similarity, device)
        _write(source, out, shifts, seed, quality, scale, tools, {k: v for k, v in about.items() if v})
    except (OSError, ValueError) as error:
        fail(str(error), WRONG_USE)


def _styled(shift: Shift, written: str, style: StyleName | None) -> Shift:
    from dataclasses import replace

    if style is None or shift.modality != "image":
        return shift
    if written.count(":") > 1 and shift.style != style:
        raise ValueError(f"{written!r} and --style {style} contradict each other")
    return replace(shift, style=style)


def _tools(wordnet: Path | None, models: Sequence[str], similarity: str | None, device: str) -> TextTools:
    from benchmarks.corruptions.text_tools import TextTools, usual_tools
    from benchmarks.corruptions.wordnet import WordNet

    words = usual_tools().wordnet if wordnet is None else WordNet(wordnet)
    if not models and similarity is None:
        return TextTools(wordnet=words)
    from benchmarks.corruptions.sentence_models import SentenceSimilarity, load_rewriter

    rewriters = {}
    for pair in models:
        name, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"--model is NAME=MODEL, not {pair!r}")
        rewriters[name] = load_rewriter(name, value, device)
    return TextTools(words, rewriters, SentenceSimilarity(similarity, device) if similarity else None)


def _write(
    source: Path,
    out: Path,
    shifts: Sequence[Shift],
    seed: int,
    quality: int | None,
    scale: bool,
    tools: TextTools,
    about: dict[str, str],
) -> None:
    from rich.console import Console
    from rich.progress import Progress

    from benchmarks.corruptions.folder import CorruptedCopy

    copy = CorruptedCopy(source, out, shifts, seed, quality, scale, tools, about)
    copy.check()
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("Corrupting", total=len(copy.files))
        summary = copy.run(lambda count: progress.advance(task, count))
    already = f", {summary.skipped} were there" if summary.skipped else ""
    typer.echo(f"{out}: {summary.written} files written{already}; {', '.join(map(str, shifts))}, seed {seed}")
