"""The console of an API process, whose worker comes late, is killed in the middle of a run and comes back."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from attune import Client
from benchmarks.cluster import Cluster, Process, cluster, until
from benchmarks.redis_server import executable
from demo.scenes import scenes
from tests.e2e.conftest import DESKTOP, opened
from tests.e2e.test_search import hits, start_drift

try:
    executable()
except RuntimeError as error:
    pytest.skip(str(error), allow_module_level=True)

START_S = 60.0
START_MS = 60_000


@pytest.fixture(scope="module")
def deployment() -> Iterator[Cluster]:
    """Redis and an API process; no worker yet."""
    built = os.environ.get("ATTUNE_CONSOLE_FOLDER")
    settings = {"console_folder": built} if built else {}
    with cluster(apis=0, workers=0, classifier="", **settings) as running:
        api = running.start("api", data_folder=running.folder / "none")
        assert until(lambda: answers(api), START_S)
        yield running


@pytest.fixture
def page(browser: Browser, deployment: Cluster) -> Iterator[Page]:
    yield from opened(browser, deployment.apis[0].address, DESKTOP)


def answers(process: Process) -> bool:
    try:
        return httpx.get(f"{process.address}/livez", timeout=2).is_success
    except httpx.HTTPError:
        return False


def test_a_page_outlives_the_only_worker_and_every_batch_is_learned_once(
    page: Page, deployment: Cluster
) -> None:
    """One test, because starting processes is what takes the time."""
    api = deployment.apis[0]
    badge = page.locator(".status")
    expect(badge).to_contain_text("no worker has started yet", timeout=START_MS)
    worker = deployment.start("worker")
    expect(badge).to_contain_text("live", timeout=START_MS)
    for name in ("Source model", "Adapted stream"):
        expect(hits(page, name)).to_have_count(8, timeout=START_MS)
        preview = hits(page, name).first.locator("img")
        expect(preview).to_have_js_property("complete", True)
        expect(preview).to_have_js_property("naturalWidth", 128)

    page.goto("/#/streams")
    with Client(api.address) as client:
        client.retrieve(text=[scene.caption for scene in scenes("test", 16)], stream="door", adapt="sync")
        row = page.get_by_role("row", name="door")
        expect(row).to_contain_text("learning", timeout=START_MS)
        expect(row.get_by_title("an unknown number of queries in the queue")).to_have_text("\u2013")

        page.goto("/#/search")
        page.get_by_label("A batch").select_option("16")
        start_drift(page, 128, "storm")
        run = page.get_by_role("region", name="Send a stream")
        expect(run).to_contain_text(re.compile(r"\b(16|32|48) of 128 queries"), timeout=START_MS)
        worker.kill()
        expect(badge).to_contain_text("no worker is alive", timeout=START_MS)
        expect(page.get_by_role("button", name="Stop", exact=True)).to_be_visible()
        page.goto("/#/streams")
        expect(row).to_be_visible()
        stale = page.get_by_role("status").filter(has_text="This is how things stood")
        expect(stale).to_contain_text("No worker is alive")
        page.goto("/#/search")

        deployment.start("worker")
        expect(run).to_contain_text("Over the last 64 queries", timeout=START_MS)
        expect(badge).to_contain_text("live", timeout=START_MS)
        assert client.stream_history("storm")["tracks"]["demo/image->text"]["batch"] == [*range(1, 9)]
    assert until(lambda: deployment.leftovers() == {}, START_S)
    assert not (deployment.folder / "none").exists()
    maps = Path(f"/proc/{api.pid}/maps")  # of Linux
    assert not maps.exists() or "libtorch" not in maps.read_text()
