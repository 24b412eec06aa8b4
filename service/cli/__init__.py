"""The `attune` command. Only what a command needs is imported when it runs: no torch for client commands."""

from __future__ import annotations

from typing import Annotated

import typer

from service.cli import (
    calibrate,
    calibration,
    classify,
    corrupt,
    galleries,
    query,
    redis,
    serve,
    snapshots,
    streams,
)
from service.version import VERSION

app = typer.Typer(
    name="attune",
    help="Cross-modal search that keeps its quality when the queries drift. "
    "Client commands take the server from ATTUNE_URL and the admin key from ATTUNE_ADMIN_KEY.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("serve")(serve.serve)
app.command("query")(query.query)
app.command("classify")(classify.classify)
app.command("calibrate")(calibrate.calibrate)
app.command("corrupt")(corrupt.corrupt)
app.add_typer(galleries.app, name="gallery")
app.add_typer(calibration.app, name="calibration")
app.add_typer(streams.app, name="stream")
app.add_typer(snapshots.app, name="snapshot")
app.add_typer(redis.app, name="redis")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"attune {VERSION}")
        raise typer.Exit


@app.callback()
def _global(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point of the `attune` script."""
    app()
