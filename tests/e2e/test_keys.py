"""The console of a server with an admin key, and of one that is stopped and started again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from attune import Client
from benchmarks.server import free_port, running_server
from demo.scenes import scenes

KEY = "correct-horse-battery"


class Server:
    """One address and one data folder, whoever serves them."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.folder = folder
        self.address = f"http://127.0.0.1:{self.port}"
        self._running = ExitStack()

    def start(self) -> None:
        settings: dict[str, Any] = {"admin_key": KEY, "data_folder": self.folder, "classifier": ""}
        if built := os.environ.get("ATTUNE_CONSOLE_FOLDER"):  # of whoever works on the page
            settings["console_folder"] = built
        started = running_server(port=self.port, demo_gallery_items=32, torch_threads=1, **settings)
        self._running.enter_context(started)

    def stop(self) -> None:
        self._running.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("keys"))
    made.start()
    with Client(made.address, admin_key=KEY) as client:
        captions = [scene.caption for scene in scenes("test", 16)]
        client.retrieve(text=captions, stream="door-camera", adapt="sync")
    yield made
    made.stop()


@pytest.fixture
def locked(browser: Browser, server: Server) -> Iterator[Page]:
    """The list of streams, as it is seen without the key."""
    context = browser.new_context(base_url=server.address)
    context.set_default_timeout(20_000)
    page = context.new_page()
    page.goto("/#/streams")
    expect(page.get_by_role("heading", name="Locked")).to_be_visible()
    yield page
    context.close()


def give(page: Page, key: str) -> None:
    dialog = page.get_by_role("dialog", name="Admin key")
    dialog.get_by_label("Admin key").fill(key)
    dialog.get_by_role("button", name="Use it").click()


def test_a_wrong_key_is_refused_the_right_one_opens_and_neither_is_stored(locked: Page) -> None:
    page = locked
    page.get_by_role("button", name="Enter the admin key", exact=True).click()
    give(page, "wrong")
    dialog = page.get_by_role("dialog", name="Admin key")
    expect(dialog.get_by_role("alert")).to_have_text("the admin key is wrong")
    expect(page.get_by_role("link", name="door-camera")).to_have_count(0)
    give(page, KEY)
    expect(dialog).to_have_count(0)
    expect(page.get_by_role("link", name="door-camera")).to_be_visible()

    stored = page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie])")
    assert KEY not in stored + str(page.context.storage_state(indexed_db=True)) + page.url
    page.reload()
    expect(page.get_by_role("heading", name="Locked")).to_be_visible()


def test_the_page_outlives_a_restart_of_the_server(locked: Page, server: Server) -> None:
    page = locked
    page.get_by_role("button", name="Enter the admin key", exact=True).click()
    give(page, KEY)
    expect(page.get_by_role("link", name="door-camera")).to_be_visible()
    server.stop()
    expect(page.get_by_role("button", name="connection lost")).to_be_visible()
    expect(page.get_by_role("status").filter(has_text="The connection is lost")).to_be_visible()
    expect(page.get_by_role("link", name="door-camera")).to_be_visible()

    server.start()
    with Client(server.address, admin_key=KEY) as client:
        client.retrieve(text="a red circle", stream="new-camera", adapt="async")
    expect(page.get_by_role("link", name="new-camera")).to_be_visible(timeout=20_000)
    expect(page.get_by_role("link", name="door-camera")).to_be_visible()
    expect(page.get_by_text("The connection is lost")).to_have_count(0)
