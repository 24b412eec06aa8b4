"""`attune redis ...`: what a deployment holds in Redis. It talks to Redis itself, not to a server."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.cli.common import FAILED, WRONG_USE, AsJson, fail, show_json, show_table

if TYPE_CHECKING:
    from redis import Redis

    from service.redis.keys import Keys
    from service.settings import Settings

app = typer.Typer(
    help="What a deployment holds in Redis. Takes ATTUNE_REDIS_URL and the other settings, as a server does.",
    no_args_is_help=True,
)

_TIMEOUT_S = 10.0
_SECONDS_OF_AN_HOUR = 3_600


@app.command()
def status(as_json: AsJson = False) -> None:
    """Workers, partitions, what waits, streams, memory by kind of key."""
    from service.redis import maintenance

    with _deployment() as (client, keys, settings):
        found = maintenance.status(client, keys, lease_s=settings.lease_s)
    if as_json:
        show_json(found)
    else:
        _show(found)


@app.command()
def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    older_than_hours: Annotated[
        float,
        typer.Option(min=0.0, help="Gatherings of streams without a state go after so long without use."),
    ] = 1.0,
    old_layouts: Annotated[
        bool, typer.Option("--old-layouts", help="Also what other versions of the key layout left.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Remove what no lifetime removes. Safe beside running workers and servers."""
    from service.redis import maintenance

    with _deployment() as (client, keys, _):
        found = maintenance.collect(
            client,
            keys,
            dry_run=dry_run,
            older_than_s=older_than_hours * _SECONDS_OF_AN_HOUR,
            old_layouts=old_layouts,
        )
    if as_json:
        show_json(asdict(found))
    else:
        _show_collected(found)


@contextmanager
def _deployment() -> Iterator[tuple[Redis, Keys, Settings]]:
    """A client for the length of a command. Whatever goes wrong becomes one line without the password."""
    from redis.exceptions import AuthenticationError

    from service.redis.connection import GONE, connect, shown
    from service.redis.keys import Keys
    from service.settings import ConfigurationError, load

    try:
        settings = load()
    except ConfigurationError as error:
        fail(str(error), WRONG_USE)
    if settings.redis_url is None:
        fail("there is no Redis: set ATTUNE_REDIS_URL", WRONG_USE)
    url = settings.redis_url.get_secret_value()
    try:
        client = connect(url, timeout_s=_TIMEOUT_S)
    except ValueError:  # its text may quote the password
        fail("ATTUNE_REDIS_URL is no address of a Redis; one looks like redis://redis:6379/0", WRONG_USE)
    try:
        with client:
            yield client, Keys(settings.redis_namespace), settings
    except AuthenticationError:
        fail(f"Redis at {shown(url)} refuses user or password", FAILED)
    except GONE as error:
        fail(f"Redis at {shown(url)}: {error}", FAILED)


def _show(found: Mapping[str, Any]) -> None:
    others = "".join(f", {count} keys of layout {name}" for name, count in found["other_layouts"].items())
    most = found["redis_max_memory_bytes"]
    rows = {
        "namespace": f"{found['namespace']}, layout {found['layout_version']}{others}",
        "redis": f"{found['redis_version']}, {_bytes(found['redis_memory_bytes'])} used"
        f"{f' of {_bytes(most)}' if most else ''}, "
        f"{'with' if found['append_only_file'] else 'WITHOUT'} an append-only file",
        "partitions": f"{found['partitions_owned']} owned, {found['partitions_free']} free",
        "waiting": f"{found['waiting_items']} items",
        "streams": f"{found['streams']}, gatherings: {found['gatherings']}",
    }
    for name, text in rows.items():
        typer.echo(f"{name:<11} {text}")
    _table("Workers", found["workers"], ("worker", "alive", "seen_s", "partitions"))
    _table("API processes", found["apis"], ("api", "alive", "seen_s"))
    _table(
        "Partitions in use",
        found["partitions"],
        ("partition", "owner", "entries", "pending", "oldest_pending_s", "gatherings"),
    )
    memory = [
        row | {"bytes": ("~" if row["estimated"] else "") + _bytes(row["bytes"])} for row in found["memory"]
    ]
    _table("Memory by kind of key", memory, ("kind", "keys", "bytes", "bytes_a_key"))


def _table(title: str, rows: list[dict[str, Any]], columns: tuple[str, ...]) -> None:
    typer.echo(f"\n{title}{'' if rows else ': none'}")
    if rows:
        show_table(rows, columns, as_json=False)


def _show_collected(found: Any) -> None:
    values = asdict(found)
    was, counted, dry_run = values.pop("waiting_was"), values.pop("waiting_is"), values.pop("dry_run")
    in_use = values.pop("old_layouts_in_use")
    typer.echo("would remove" if dry_run else "removed")
    for name, count in values.items():
        typer.echo(f"  {name.replace('_', ' '):<26} {count}")
    if in_use:
        typer.echo(f"layouts {', '.join(in_use)} are in use and stay")
    if counted is None:
        typer.echo(f"waiting items: {was}, not recounted, because too much waits")
    elif was == counted:
        typer.echo(f"waiting items: {was}, as counted")
    else:
        typer.echo(f"waiting items: {was}, {'counted' if dry_run else 'corrected to'} {counted}")


def _bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
