"""`attune query`: search from the terminal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.cli.common import AsJson, Url, connected, show_json, show_table

if TYPE_CHECKING:
    from service.client import Answer


def query(
    texts: Annotated[list[str] | None, typer.Argument(metavar="[TEXT]...", help="What to look for.")] = None,
    image: Annotated[list[Path] | None, typer.Option("--image", "-i", help="A picture; repeatable.")] = None,
    k: Annotated[int, typer.Option("-k", help="Hits of each query.")] = 5,
    gallery: Annotated[str | None, typer.Option(help="Default: the server's.")] = None,
    stream: Annotated[str | None, typer.Option(help="Whose queries these are.")] = None,
    target: Annotated[str | None, typer.Option(help="auto, image or text.")] = None,
    adapt: Annotated[str | None, typer.Option(help="auto, sync, async or off.")] = None,
    filter: Annotated[str | None, typer.Option(help="""JSON, for example '{"colour": "red"}'.""")] = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Search a gallery by texts and pictures."""
    if not texts and not image:
        raise typer.BadParameter("give a text, or a picture with --image")
    wanted = _filter(filter)
    with connected(url) as client:
        answer = client.retrieve(
            text=texts or None,
            image=image or None,
            k=k,
            gallery=gallery,
            stream=stream,
            target=target,
            adapt=adapt,
            filter=wanted,
        )
        names = [*(texts or []), *(str(path) for path in image or [])]
        _show(answer, names, as_json)


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
    for name, hits in zip(names, answer.results, strict=True):
        if len(names) > 1:
            typer.echo(f"{name}:")
        rows = [
            {"rank": i, "score": f"{hit.score:.4f}", "id": hit.id, "payload": hit.payload}
            for i, hit in enumerate(hits, start=1)
        ]
        show_table(rows, ("rank", "score", "id", "payload"), False)
    for done in answer.parts or (answer.adaptation,):
        why = f" ({done.reason})" if done.reason else ""
        typer.echo(
            f"{done.direction}: {done.method} {done.mode}, {done.status}{why}, state {done.state_version}; "
            f"{answer.timings_ms['total']:.1f} ms",
            err=True,
        )
