"""A real server, and a real Chromium that looks at its console."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from benchmarks.server import running_server

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
DESKTOP = {"width": 1280, "height": 800}
PHONE = {"width": 390, "height": 844}
# Without them a browser without a network looks up addresses of its maker.
QUIET = (
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--disable-quic",
)
MEDIA = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")


def chromium() -> str | None:
    """The browser's program: ATTUNE_CHROMIUM, else the first that is installed."""
    named = os.environ.get("ATTUNE_CHROMIUM")
    return named or next((path for name in NAMES if (path := shutil.which(name))), None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """These run after all others, which would meet the event loop of Playwright's thread."""
    here = [item for item in items if item.path.is_relative_to(Path(__file__).parent)]
    for item in here:
        item.add_marker(pytest.mark.e2e)
    chosen = set(here)
    items[:] = [*(item for item in items if item not in chosen), *here]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    program = chromium()
    if program is None:
        pytest.skip("no Chromium is installed (ATTUNE_CHROMIUM names one)")
    arguments = [*QUIET, *MEDIA, *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=arguments)
        yield started
        started.close()


@pytest.fixture(scope="session")
def address() -> Iterator[str]:
    """A server with the demo encoder, classifier and gallery, that everyone here uses: name streams apart."""
    built = os.environ.get("ATTUNE_CONSOLE_FOLDER")  # of whoever works on the page
    folder = {"console_folder": built} if built else {}
    with running_server(demo_gallery_items=200, torch_threads=1, **folder) as url:
        yield url


@pytest.fixture
def page(request: pytest.FixtureRequest, browser: Browser, address: str) -> Iterator[Page]:
    """The console at 1280 pixels; a script's error, or a request to anywhere else, fails the test.

    It opens at the module's START, if that has one: the first view searches at once, which takes its time.
    """
    yield from opened(browser, address, DESKTOP, start_of(request))


@pytest.fixture
def phone(request: pytest.FixtureRequest, browser: Browser, address: str) -> Iterator[Page]:
    yield from opened(browser, address, PHONE, start_of(request))


def start_of(request: pytest.FixtureRequest) -> str:
    return str(getattr(request.module, "START", "/"))


def opened(browser: Browser, address: str, size: dict[str, int], start: str = "/") -> Iterator[Page]:
    context = browser.new_context(
        viewport=size, base_url=address, permissions=["clipboard-read", "clipboard-write"]
    )  # type: ignore[arg-type]
    context.set_default_timeout(20_000)
    page = context.new_page()
    failures: list[str] = []
    page.on("pageerror", lambda error: failures.append(f"error: {error}"))
    page.on(
        "console", lambda said: failures.append(said.text) if "Content Security Policy" in said.text else None
    )
    page.on(
        "request",
        lambda asked: (
            failures.append(asked.url) if not asked.url.startswith((address, "data:", "blob:")) else None
        ),
    )
    page.goto(start)
    page.get_by_role("navigation", name="Views").wait_for()
    yield page
    context.close()
    assert not failures, failures
