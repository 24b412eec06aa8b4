"""`attune query`: search from the terminal."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.cli.common import AsJson, Url, connected, show_json, show_table

if TYPE_CHECKING:
    from service.client import Answer, Part


def query(
    texts: Annotated[list[str] | None, typer.Argument(metavar="[TEXT]...", help="What to look for.")] = None,
    image: Annotated[list[Path] | None, typer.Option("--image", "-i", help="A picture; repeatable.")] = None,
    k: Annotated[int, typer.Option("-k", help="Hits of each query.")] = 5,
    gallery: Annotated[str | None, typer.Option(help="Default: the server's.")] = None,
    stream: Annotated[str | None, typer.Option(help="Whose queries these are.")] = None,
    target: Annotated[str | None, typer.Option(help="auto, image, text or anchor.")] = None,
    adapt: Annotated[str | None, typer.Option(help="auto, sync, async or off.")] = None,
    filter: Annotated[str | None, typer.Option(help="""JSON, for example '{"colour": "red"}'.""")] = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Search a gallery by texts or pictures, or by both: each text with the picture in its place."""
    queries = _queries(texts or [], image or [])
    wanted = _filter(filter)
    with connected(url) as client:
        answer = client.retrieve(
            queries,
            k=k,
            gallery=gallery,
            stream=stream,
            target=target,
            adapt=adapt,
            filter=wanted,
        )
        names = [" + ".join(str(part) for part in query.values()) for query in queries]
        _show(answer, names, as_json)


def _queries(texts: list[str], images: list[Path]) -> list[dict[str, Any]]:
    if not texts and not images:
        raise typer.BadParameter("give a text, or a picture with --image")
    if texts and images and len(texts) != len(images):
        raise typer.BadParameter(
            f"texts and pictures together are queries of both, and there are {len(texts)} and {len(images)}"
        )
    if texts and images:
        return [{"text": text, "image": path} for text, path in zip(texts, images, strict=True)]
    return [{"text": text} for text in texts] or [{"image": path} for path in images]


def _filter(text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    try:
        wanted = json.loads(text)
    except ValueError:
        wanted = None
    if not isinstance(wanted, dict):
        raise typer.BadParameter("--filter is a JSON object")
    return wanted


def _show(answer: Answer, names: list[str], as_json: bool) -> None:
    if as_json:
        from dataclasses import asdict

        show_json(asdict(answer))
        return
    known = answer.completeness or (None,) * len(names)
    for name, hits, query in zip(names, answer.results, known, strict=True):
        if len(names) > 1:
            typer.echo(f"{name}:")
        if query is not None:
            novelty = "not known" if query.novelty is None else f"{query.novelty:.2f}"
            typer.echo(f"query: {_in_words(query.parts)}; novelty {novelty}", err=True)
        rows = [
            {
                "rank": i,
                "score": f"{hit.score:.4f}",
                "id": hit.id,
                **({"has": _in_words(hit.parts)} if hit.parts else {}),
                "payload": hit.payload,
            }
            for i, hit in enumerate(hits, start=1)
        ]
        columns = ("rank", "score", "id", *(("has",) if any(hit.parts for hit in hits) else ()), "payload")
        show_table(rows, columns, False)
    for done in answer.parts or (answer.adaptation,):
        why = f" ({done.reason})" if done.reason else ""
        typer.echo(
            f"{done.direction}: {done.method} {done.mode}, {done.status}{why}, state {done.state_version}; "
            f"{answer.timings_ms['total']:.1f} ms",
            err=True,
        )


def _in_words(parts: Mapping[str, Part]) -> str:
    """`image, text imputed (0.74)`"""
    return ", ".join(
        name if part.observed else f"{name} imputed ({part.confidence:.2f})" for name, part in parts.items()
    )
