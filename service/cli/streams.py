"""`attune stream ...`"""

from __future__ import annotations

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

app = typer.Typer(help="Streams: what was learnt from whose queries.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="The stream.")]


@app.command("list")
def list_(url: Url = None, as_json: AsJson = False) -> None:
    """All streams."""
    with connected(url) as client:
        show_table(client.list_streams(), ("name", "method", "version", "batches", "last_seen"), as_json)


@app.command()
def show(name: Name, url: Url = None, as_json: AsJson = False) -> None:
    """One stream with its tracks and drift."""
    with connected(url) as client:
        show_card(client.describe_stream(name), as_json)


@app.command("set")
def set_(
    name: Name,
    method: Annotated[str | None, typer.Option(help="Adaptation method.")] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Method setting; repeatable.")
    ] = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Set a stream's method; a change of the method drops what was learnt."""
    settings = parse_assignments(setting or []) or None
    with connected(url) as client:
        show_card(client.configure_stream(name, method=method, settings=settings), as_json)


@app.command()
def reset(name: Name, url: Url = None, as_json: AsJson = False) -> None:
    """Back to the source model."""
    with connected(url) as client:
        show_card(client.reset_stream(name), as_json)


@app.command()
def delete(
    name: Name,
    force: Annotated[bool, typer.Option("--force", help="With its snapshots.")] = False,
    yes: Yes = False,
    url: Url = None,
) -> None:
    """Delete a stream."""
    confirm(f"Delete stream {name}{' with its snapshots' if force else ''}?", yes)
    with connected(url) as client:
        client.delete_stream(name, force=force)
