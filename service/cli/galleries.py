"""`attune gallery ...`"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from service.cli.common import (
    AsJson,
    Url,
    Yes,
    confirm,
    connected,
    parse_assignments,
    show_card,
    show_table,
)

app = typer.Typer(help="Galleries and their items.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="The gallery.")]


@app.command("list")
def list_(url: Url = None, as_json: AsJson = False) -> None:
    """All galleries."""
    with connected(url) as client:
        show_table(client.list_galleries(), ("name", "items", "targets", "calibration", "status"), as_json)


@app.command()
def show(name: Name, url: Url = None, as_json: AsJson = False) -> None:
    """One gallery."""
    with connected(url) as client:
        show_card(client.describe_gallery(name), as_json)


@app.command()
def create(
    name: Name,
    index: Annotated[
        list[str] | None,
        typer.Option("--index", metavar="NAME=VALUE", help="Index setting, such as kind=ivf; repeatable."),
    ] = None,
    calibration: Annotated[
        str | None,
        typer.Option(help="What completes items and queries that lack a picture or a text, for good."),
    ] = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Create an empty gallery."""
    settings = parse_assignments(index or []) or None
    with connected(url) as client:
        show_card(client.create_gallery(name, index=settings, calibration=calibration), as_json)


@app.command()
def delete(name: Name, yes: Yes = False, url: Url = None) -> None:
    """Delete a gallery with all its items."""
    confirm(f"Delete gallery {name} with all its items?", yes)
    with connected(url) as client:
        client.delete_gallery(name)


@app.command()
def add(
    name: Name,
    source: Annotated[
        Path,
        typer.Argument(
            help="Folder of pictures (with captions.tsv: FILE<TAB>CAPTION, if wanted), a .tsv of that form, "
            "or a .jsonl of {id, text, image, payload}.",
            exists=True,
        ),
    ],
    batch_size: Annotated[int, typer.Option(min=1, max=10_000, help="Items of one request.")] = 64,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Add or replace items in bulk."""
    from service.cli.sources import read_items

    with connected(url) as client:
        items = read_items(source)
        with _progress(len(items), quiet=as_json) as advance:
            total = client.upsert_items(name, items, batch_size=batch_size, on_progress=advance)
        show_card(total, as_json)


@app.command()
def remove(
    name: Name,
    ids: Annotated[list[str], typer.Argument(help="Items to remove.")],
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Remove items by id."""
    with connected(url) as client:
        show_card({"deleted": client.delete_items(name, ids)}, as_json)


@contextmanager
def _progress(total: int, *, quiet: bool) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr where somebody watches it."""
    if quiet or not sys.stderr.isatty():
        yield lambda sent: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("adding"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("adding", total=total)
        yield lambda sent: progress.update(task, completed=sent)
