"""`attune stream ...`"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

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
_TRACK = (
    "gallery",
    "direction",
    "version",
    "applied",
    "skipped",
    "undone",
    "gathered",
    "memory_size",
    "gap",
    "target gap",
    "uniformity",
    "entropy",
)
Name = Annotated[str, typer.Argument(help="The stream.")]


@app.command("list")
def list_(url: Url = None, as_json: AsJson = False) -> None:
    """All streams."""
    with connected(url) as client:
        streams = client.list_streams()
    if not as_json:
        streams = [{**stream, "classify": (stream.get("classify") or {}).get("method")} for stream in streams]
    show_table(streams, ("name", "method", "classify", "version", "batches", "last_seen"), as_json)


@app.command()
def show(name: Name, url: Url = None, as_json: AsJson = False) -> None:
    """One stream with its tracks and drift."""
    with connected(url) as client:
        show_stream(client.describe_stream(name), as_json)


@app.command("set")
def set_(
    name: Name,
    method: Annotated[str | None, typer.Option(help="Adaptation method.")] = None,
    task: Annotated[
        str | None, typer.Option(help="What the method is for, where both have it: retrieve or classify.")
    ] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Method setting; repeatable.")
    ] = None,
    pinned: Annotated[
        bool | None, typer.Option("--pin/--unpin", help="Keep it in memory, and for ever.")
    ] = None,
    guard: Annotated[
        list[str] | None,
        typer.Option("--guard", metavar="NAME=VALUE", help="Setting of its guard; repeatable."),
    ] = None,
    calibration: Annotated[
        str | None, typer.Option(help="What completes what its queries lack; an empty name detaches.")
    ] = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Set a stream's method or guard, or pin it; a change of the method drops what was learnt."""
    changes: dict[str, Any] = {
        "method": method,
        "task": task,
        "settings": parse_assignments(setting or []) or None,
        "pinned": pinned,
        "guard": parse_assignments(guard or []) or None,
        "calibration": calibration,
    }
    with connected(url) as client:
        show_stream(client.configure_stream(name, **changes), as_json)


@app.command()
def events(name: Name, url: Url = None, as_json: AsJson = False) -> None:
    """What the guard did to a stream, oldest first."""
    with connected(url) as client:
        tracks = client.describe_stream(name).get("tracks", ())
    told = [event for track in tracks for event in track["guard"]["events"]]
    told.sort(key=lambda event: event["time"])
    show_table(told, ("time", "track", "batch", "action", "finding", "reason"), as_json)


@app.command()
def reset(name: Name, url: Url = None, as_json: AsJson = False) -> None:
    """Back to the source model."""
    with connected(url) as client:
        show_stream(client.reset_stream(name), as_json)


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


def show_stream(stream: Mapping[str, Any], as_json: bool) -> None:
    """The stream line by line, then its tracks as a table: one row for each gallery and direction."""
    if as_json:
        show_card(stream, as_json)
        return
    show_card({name: value for name, value in stream.items() if name != "tracks"}, False)
    rows = [{**track, **_drift(track.get("drift") or {})} for track in stream.get("tracks", ())]
    if rows:
        typer.echo("")
        show_table(rows, _TRACK, False)


def _drift(figures: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "gap": figures.get("modality_gap"),
        "target gap": figures.get("modality_gap_target"),
        "uniformity": figures.get("uniformity"),
        "entropy": figures.get("entropy_nats"),
    }
