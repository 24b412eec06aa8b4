"""`attune snapshot ...`"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from service.cli.common import AsJson, Url, Yes, confirm, connected, show_card, show_table
from service.cli.streams import show_stream

app = typer.Typer(help="Snapshots of streams.", no_args_is_help=True)
Stream = Annotated[str, typer.Argument(help="The stream.")]
Name = Annotated[str, typer.Argument(help="The snapshot.")]


@app.command("list")
def list_(stream: Stream, url: Url = None, as_json: AsJson = False) -> None:
    """A stream's snapshots."""
    with connected(url) as client:
        columns = ("name", "created_at", "method", "version", "bytes", "note")
        show_table(client.list_snapshots(stream), columns, as_json)


@app.command()
def create(
    stream: Stream,
    name: Annotated[str | None, typer.Argument(help="Default: the server chooses.")] = None,
    note: Annotated[str, typer.Option(help="A line for people.")] = "",
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Take a snapshot."""
    with connected(url) as client:
        show_card(client.create_snapshot(stream, name, note=note), as_json)


@app.command()
def restore(stream: Stream, name: Name, url: Url = None, as_json: AsJson = False) -> None:
    """Put a snapshot in the place of the stream's states."""
    with connected(url) as client:
        show_stream(client.restore_snapshot(stream, name), as_json)


@app.command()
def compare(
    stream: Stream,
    first: Annotated[str, typer.Argument(help="A snapshot.")],
    second: Annotated[str | None, typer.Argument(help="Another one. Default: the stream as it is.")] = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """What two snapshots differ by, or a snapshot and the stream as it is."""
    with connected(url) as client:
        compared = client.compare_snapshots(stream, first, second)
    if as_json:
        show_card(compared, as_json)
        return
    sides = [{**compared[side], "name": compared[side]["name"] or "now"} for side in ("first", "second")]
    show_table(sides, ("name", "created_at", "method", "version", "batches"), False)
    rows = [_compared(name, track) for name, track in compared["tracks"].items()]
    if rows:
        typer.echo("")
        show_table(rows, ("track", "in", "versions", "distance", "farthest"), False)


def _compared(name: str, track: Mapping[str, Any]) -> dict[str, Any]:
    versions = (str(track[side]["version"]) if track[side] else "-" for side in ("first", "second"))
    farthest = ", ".join(parameter["name"] for parameter in track["parameters"][:3])
    return {
        "track": name,
        "in": track["in"],
        "versions": " -> ".join(versions),
        "distance": track["distance"],
        "farthest": farthest,
    }


@app.command()
def delete(stream: Stream, name: Name, yes: Yes = False, url: Url = None) -> None:
    """Delete a snapshot."""
    confirm(f"Delete snapshot {name} of {stream}?", yes)
    with connected(url) as client:
        client.delete_snapshot(stream, name)


@app.command()
def export(
    stream: Stream,
    name: Name,
    file: Annotated[Path | None, typer.Argument(help="Default: STREAM-NAME.attune here.")] = None,
    url: Url = None,
) -> None:
    """Write a snapshot to a file."""
    target = file or Path(f"{stream}-{name}.attune")
    with connected(url) as client:
        client.export_snapshot(stream, name, target)
    typer.echo(str(target))


@app.command("import")
def import_(
    stream: Stream,
    file: Annotated[Path, typer.Argument(help="A file made by export.", exists=True, dir_okay=False)],
    name: Annotated[str | None, typer.Option(help="Default: the name in the file.")] = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Keep a file as a snapshot of a stream; restore it to use it."""
    with connected(url) as client:
        show_card(client.import_snapshot(stream, file, name), as_json)
