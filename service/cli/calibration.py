"""`attune calibration ...`: those that a server keeps. `attune calibrate` makes files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from service.cli.common import AsJson, Url, Yes, confirm, connected, show_card, show_table

app = typer.Typer(
    help="Calibrations of a server: what completes what queries and items lack.", no_args_is_help=True
)
Name = Annotated[str, typer.Argument(help="The calibration.")]


@app.command("list")
def list_(url: Url = None, as_json: AsJson = False) -> None:
    """All calibrations; `encoder` and `classifier` come with the models' weights."""
    with connected(url) as client:
        columns = ("name", "task", "latent", "samples", "relative_error", "status")
        show_table(client.list_calibrations(), columns, as_json)


@app.command()
def show(name: Name, url: Url = None, as_json: AsJson = False) -> None:
    """One calibration, and the galleries that need it."""
    with connected(url) as client:
        show_card(client.describe_calibration(name), as_json)


@app.command()
def add(
    name: Name,
    file: Annotated[
        Path, typer.Argument(help="Made by `attune calibrate` or export.", exists=True, dir_okay=False)
    ],
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Send a file to the server."""
    with connected(url) as client:
        show_card(client.add_calibration(name, file), as_json)


@app.command()
def fit(
    name: Name,
    gallery: Annotated[str, typer.Option(help="Whose items with a picture and a text are learned from.")],
    latent: Annotated[
        int | None, typer.Option(min=1, help="Numbers that both share; default: as many as impute best.")
    ] = None,
    samples: Annotated[int, typer.Option(min=8, help="Most items, drawn at random.")] = 5000,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Make a calibration from a gallery."""
    with connected(url) as client:
        show_card(client.fit_calibration(name, gallery, latent=latent, samples=samples), as_json)


@app.command()
def export(
    name: Name,
    file: Annotated[Path | None, typer.Argument(help="Default: NAME.safetensors here.")] = None,
    url: Url = None,
) -> None:
    """Write a calibration to a file."""
    target = file or Path(f"{name}.safetensors")
    with connected(url) as client:
        client.export_calibration(name, target)
    typer.echo(str(target))


@app.command()
def delete(name: Name, yes: Yes = False, url: Url = None) -> None:
    """Delete a calibration that no gallery needs."""
    confirm(f"Delete calibration {name}?", yes)
    with connected(url) as client:
        client.delete_calibration(name)
