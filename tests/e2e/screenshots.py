"""Pictures of every view of the console, on a server that has been at work.

python -m tests.e2e.screenshots docs
"""

from __future__ import annotations

import argparse
import io
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from PIL import Image
from playwright.sync_api import Browser, Page, ViewportSize, expect, sync_playwright

from attune import Client
from benchmarks.server import running_server
from demo.scenes import Scene, render, scenes
from tests.e2e.conftest import DESKTOP, MEDIA, PHONE, QUIET, chromium

Thing = TypeVar("Thing")

BATCH = 32
PATIENCE_MS = 60_000
# Pictures that can be seen have arrived.
DRAWN = """() => [...document.images].every((image) => {
  const { top, bottom, width } = image.getBoundingClientRect();
  return width === 0 || bottom < 0 || top > innerHeight || (image.complete && image.naturalWidth > 0);
})"""


def main() -> None:
    made = argparse.ArgumentParser(prog="python -m tests.e2e.screenshots", description=__doc__)
    made.add_argument("out", type=Path, help="folder for console-*.png")
    out: Path = made.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    program = chromium()
    if program is None:
        raise SystemExit("no Chromium is installed (ATTUNE_CHROMIUM names one)")
    built = os.environ.get("ATTUNE_CONSOLE_FOLDER")
    folder: dict[str, Any] = {"console_folder": built} if built else {}
    flags = [*QUIET, *MEDIA, *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    with running_server(**folder) as url, sync_playwright() as playwright:
        with Client(url) as client:
            live(client)
        browser = playwright.chromium.launch(executable_path=program, args=flags)
        take_all(browser, url, out)
        browser.close()


def live(client: Client) -> None:
    """Streams that drift in ways of their own, one that learns too fast, snapshots, and a gallery."""
    shown = scenes("dev", 4 * BATCH)
    pictures = [render(scene) for scene in shown]
    for number in range(2):
        client.retrieve(image=_part(pictures, number), stream="camera-north", adapt="sync")
    client.create_snapshot("camera-north", "before-the-fog", note="clear weather")
    for number in range(8):
        severity = min(5, 2 + number // 2)
        foggy = client.corrupt("fog", image=_part(pictures, number), severity=severity, seed=number)
        client.retrieve(image=foggy, stream="camera-north", adapt="sync")
    client.create_snapshot("camera-north", "after-the-fog", note="eight batches of fog")

    client.configure_stream("shop-search", method="tent", task="retrieve")
    for number in range(5):
        words = [scene.caption for scene in _part(shown, number)]
        typed = client.corrupt("CR", text=words, severity=4, seed=number)
        client.retrieve(text=typed, stream="shop-search", adapt="sync")

    client.configure_stream("night-shift", method="tcr", task="retrieve", settings={"learning_rate": 0.3})
    for number in range(6):
        noisy = client.corrupt("gaussian_noise", image=_part(pictures, number), severity=5, seed=number)
        client.retrieve(image=noisy, stream="night-shift", adapt="sync")
    client.retrieve(text=["a red circle", "a green star"], stream="newcomer", adapt="async")

    client.create_gallery("holidays", index={"kind": "hnsw"}, calibration="encoder")
    client.upsert_items("holidays", _holidays(shown[:60]))


def _holidays(shown: list[Scene]) -> Iterator[dict[str, object]]:
    """A third with a picture alone, a third with a text alone, a third with both."""
    for number, scene in enumerate(shown):
        item: dict[str, object] = {"id": f"day-{number:03}", "payload": {"background": scene.background}}
        if number % 3 != 1:
            item["image"] = render(scene).resize((320, 320), Image.Resampling.BICUBIC)
        if number % 3 != 0:
            item["text"] = scene.caption
        yield item


def _part(all_of_them: Sequence[Thing], number: int) -> Sequence[Thing]:
    start = number * BATCH % len(all_of_them)
    return all_of_them[start : start + BATCH]


def take_all(browser: Browser, url: str, out: Path) -> None:
    """Each view as a person would see it."""
    for name, visit in VIEWS.items():
        take(browser, url, out / f"console-{name}.png", visit, size=SIZES.get(name, DESKTOP))
    for name in ("search", "stream", "gallery"):
        take(browser, url, out / f"console-{name}-dark.png", VIEWS[name], scheme="dark")
    for name in ("search", "streams", "classify", "gallery"):
        take(browser, url, out / f"console-{name}-phone.png", VIEWS[name], size=PHONE)


def take(
    browser: Browser,
    url: str,
    path: Path,
    visit: Callable[[Page], None],
    *,
    scheme: Literal["light", "dark"] = "light",
    size: Mapping[str, int] = DESKTOP,
) -> None:
    viewport = ViewportSize(width=size["width"], height=size["height"])
    context = browser.new_context(
        viewport=viewport, base_url=url, color_scheme=scheme, reduced_motion="reduce"
    )
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    visit(page)
    expect(page.locator(".status")).to_contain_text("live", timeout=PATIENCE_MS)
    page.wait_for_function(DRAWN)
    Image.open(io.BytesIO(page.screenshot())).convert("RGB").save(path, optimize=True)
    context.close()
    print(path.name)


def search(page: Page) -> None:
    page.goto("/#/search")
    samples = page.get_by_role("button", name=re.compile("^Words of gallery-"))
    samples.nth(2).click()
    _answered(page)


def search_corrupted(page: Page) -> None:
    """A blurred picture that a stream finds after many like it, and the source does not."""
    drift(page)
    page.get_by_role("button", name="Compare one of these queries").click()
    page.get_by_role("img", name=re.compile("^The picture with ")).wait_for()
    _answered(page)
    page.evaluate("window.scrollTo(0, 0)")


def _answered(page: Page) -> None:
    """Both sides have their hits; a button asks where the page does not ask by itself."""
    hits = page.get_by_role("region", name="Results").get_by_role("listitem")
    button = page.get_by_role("button", name="Search", exact=True)
    if button.is_enabled():
        button.click()
    hits.first.wait_for()
    expect(page.locator("[aria-busy=true]")).to_have_count(0, timeout=PATIENCE_MS)


def drift(page: Page) -> None:
    page.goto("/#/search")
    card = page.get_by_role("region", name="Send a stream")
    card.get_by_role("button", name="Start").click()
    card.get_by_role("button", name="Compare one of these queries").wait_for()
    card.evaluate("(card) => window.scrollTo(0, card.offsetTop - 70)")


def streams(page: Page) -> None:
    page.goto("/#/streams")
    page.get_by_role("link", name="camera-north").first.wait_for()


def stream(page: Page) -> None:
    page.goto("/#/streams/camera-north")
    page.get_by_role("button", name="Restore before-the-fog").wait_for()
    page.locator("figure canvas").first.wait_for()


def compare(page: Page) -> None:
    stream(page)
    page.get_by_role("combobox", name="Compare").select_option("before-the-fog")
    page.get_by_role("combobox", name="with").select_option("after-the-fog")
    page.get_by_role("button", name="Compare", exact=True).click()
    page.get_by_role("dialog", name="before-the-fog and after-the-fog").get_by_role("table").first.wait_for()


def classify(page: Page) -> None:
    """A clip whose picture is in fog, as the source and the stream hear and see it."""
    page.goto("/#/classify")
    page.get_by_role("list", name="Demo clips").get_by_role("button").nth(1).click()
    page.get_by_role("combobox", name="Corrupt the picture").select_option("fog")
    answer = page.get_by_role("region", name="Answer")
    answer.get_by_role("list", name="Labels, the likeliest first").first.get_by_role(
        "listitem"
    ).first.wait_for()
    expect(page.locator("[aria-busy=true]")).to_have_count(0)


def classify_run(page: Page) -> None:
    page.goto("/#/classify")
    card = page.get_by_role("region", name="Send a stream")
    card.get_by_role("button", name="Start").click()
    card.get_by_text(re.compile("^Of the last 128 samples")).wait_for(timeout=3 * PATIENCE_MS)
    card.evaluate("(card) => window.scrollTo(0, card.offsetTop - 70)")


def galleries(page: Page) -> None:
    page.goto("/#/galleries")
    page.get_by_role("heading", name="holidays").wait_for()
    page.locator("img").nth(6).wait_for()


def gallery(page: Page) -> None:
    page.goto("/#/galleries/holidays")
    page.get_by_role("button", name="Open day-000").wait_for()


VIEWS: Mapping[str, Callable[[Page], None]] = {
    "search": search,
    "search-corrupted": search_corrupted,
    "drift": drift,
    "streams": streams,
    "stream": stream,
    "compare": compare,
    "classify": classify,
    "classify-run": classify_run,
    "galleries": galleries,
    "gallery": gallery,
}

# Of those that do not fit on the usual screen.
SIZES: Mapping[str, Mapping[str, int]] = {
    "drift": {"width": 1280, "height": 1010},
    "search-corrupted": {"width": 1280, "height": 1010},
    "stream": {"width": 1280, "height": 900},
    "classify-run": {"width": 1280, "height": 900},
}

if __name__ == "__main__":
    main()
