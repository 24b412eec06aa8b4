"""How soon the console shows something: milliseconds after asking for `/`, in a browser with an empty cache.

    python -m benchmarks.first_paint
    python -m benchmarks.first_paint --url http://127.0.0.1:8080 --times 20

first paint             the browser has drawn anything at all
first contentful paint  it has drawn text or a picture
page interactive        the links of the views are there and answer
"""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Sequence
from statistics import median
from typing import Any

from playwright.sync_api import Browser, sync_playwright
from rich.table import Table

from benchmarks.console import make_console
from benchmarks.server import running_server

FIGURES = {
    "first-paint": "first paint",
    "first-contentful-paint": "first contentful paint",
    "interactive": "page interactive",
}
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

# Notes when the frame of the page has come up.
_WATCH = """new MutationObserver((_, watcher) => {
  if (!document.querySelector('nav a')) return;
  performance.mark('interactive');
  watcher.disconnect();
}).observe(document, { childList: true, subtree: true });"""
_ALL_THERE = "(names) => names.every((name) => performance.getEntriesByName(name).length > 0)"
_TIMES = "(names) => names.map((name) => performance.getEntriesByName(name)[0].startTime)"


def measure(browser: Browser, url: str, times: int) -> dict[str, list[float]]:
    """Milliseconds by figure, one number a visit."""
    visits = [_visit(browser, url) for _ in range(times)]
    return {label: [visit[place] for visit in visits] for place, label in enumerate(FIGURES.values())}


def _visit(browser: Browser, url: str) -> list[float]:
    """In the order of FIGURES. A context of its own has a cache of its own."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    try:
        page = context.new_page()
        page.add_init_script(_WATCH)
        page.goto(url)
        names = list(FIGURES)
        page.wait_for_function(_ALL_THERE, arg=names)
        found: list[float] = page.evaluate(_TIMES, names)
        return found
    finally:
        context.close()


def table(measured: dict[str, list[float]]) -> Table:
    times = len(next(iter(measured.values())))
    made = Table("milliseconds", "min", "median", "max", title=f"{times} visits with an empty cache")
    for label, values in measured.items():
        made.add_row(label, *(f"{value:.0f}" for value in (min(values), median(values), max(values))))
    return made


def program() -> str:
    """Raises SystemExit where no browser is installed."""
    found = os.environ.get("ATTUNE_CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        raise SystemExit("no Chromium is installed; ATTUNE_CHROMIUM names one that is elsewhere")
    return found


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m benchmarks.first_paint", description=__doc__)
    made.formatter_class = argparse.RawDescriptionHelpFormatter
    made.add_argument("--url", help="a server that runs; without it one is started")
    made.add_argument("--times", type=int, default=10, help="visits (10)")
    made.add_argument(
        "--console-folder", help="a built console to serve in place of the one of this checkout"
    )
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    chosen = parser().parse_args(arguments)
    settings: dict[str, Any] = {}
    if chosen.console_folder:
        settings["console_folder"] = chosen.console_folder
    flags = ["--no-sandbox"] if os.geteuid() == 0 else []
    with (
        running_server(url=chosen.url, demo_gallery_items=100, **settings) as url,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=program(), args=flags)
        _visit(browser, url)  # The browser's own start is not the page's.
        make_console().print(table(measure(browser, url, chosen.times)))
        browser.close()


if __name__ == "__main__":
    main()
