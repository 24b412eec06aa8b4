"""What the client commands share: options, the connection, errors as one line, output."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from service.client import Client

FAILED = 1
"""Exit code: the server refused or could not be reached."""
_TIMES = frozenset({"created_at", "last_seen", "time"})
WRONG_USE = 2
"""Exit code: the command itself cannot be carried out (arguments, files, settings)."""

Url = Annotated[
    str | None, typer.Option("--url", envvar="ATTUNE_URL", help="Server; default http://127.0.0.1:8080.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the server's JSON.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def fail(message: str, code: int) -> NoReturn:
    typer.echo(f"attune: {message}", err=True)
    raise typer.Exit(code)


@contextmanager
def connected(url: str | None) -> Iterator[Client]:
    """A client for the length of a command; whatever goes wrong becomes one line and an exit code."""
    from service.client import AttuneError, Client

    try:
        with Client(url) as client:
            yield client
    except AttuneError as error:
        hint = "; is it running? start it with `attune serve`" if error.code == "unreachable" else ""
        fail(f"{error}{hint}", FAILED)
    except BrokenPipeError:
        raise  # the reader of our output is gone (`| head`): no mistake
    except (OSError, ValueError) as error:
        fail(str(error), WRONG_USE)


def parse_assignments(pairs: Iterable[str]) -> dict[str, Any]:
    """["steps=3", "name=x"] -> {"steps": 3, "name": "x"}: values are JSON, or else text."""
    values: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise typer.BadParameter(f"{pair!r} is not NAME=VALUE")
        values[name.strip()] = _json_or_text(text)
    return values


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def confirm(question: str, yes: bool) -> None:
    """Go on if `yes` or the user says so; otherwise abort."""
    if not yes:
        typer.confirm(question, abort=True)


def show_json(content: Any) -> None:
    typer.echo(json.dumps(content, ensure_ascii=False, indent=2))


def show_card(card: Mapping[str, Any], as_json: bool) -> None:
    """One description: its plain values line by line, the rest as JSON."""
    if as_json:
        show_json(card)
        return
    width = max((len(name) for name in card), default=0)
    for name, value in card.items():
        typer.echo(f"{name:<{width}}  {_cell(name, value)}".rstrip())


def show_table(cards: Sequence[Mapping[str, Any]], columns: Sequence[str], as_json: bool) -> None:
    """Descriptions as a table of `columns`."""
    if as_json:
        show_json(list(cards))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for card in cards:
        table.add_row(*(_cell(column, card.get(column)) for column in columns))
    # Piped output is never cut to the width of a terminal that is not there.
    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 500)
    with console.capture() as captured:
        console.print(table)
    for line in captured.get().splitlines():
        typer.echo(line.rstrip())


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if name in _TIMES and isinstance(value, int | float):
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(value))
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
