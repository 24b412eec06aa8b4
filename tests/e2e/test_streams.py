"""Streams in the console: found, looked at, reset, kept and carried by a person while others send queries."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from playwright.sync_api import Locator, Page, expect

from attune import Client
from demo.scenes import scenes

START = "/#/streams"
BATCH = 16


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[Client]:
    """Somebody else's program."""
    with Client(address) as made:
        yield made


@pytest.fixture
def stream(client: Client) -> Iterator[str]:
    """A name that is used nowhere else."""
    name = f"e2e-{uuid4().hex[:8]}"
    yield name
    for card in client.list_streams():
        if card["name"].startswith(name):
            client.delete_stream(card["name"], force=True)


def send(client: Client, stream: str, batches: int = 1, *, start: int = 0) -> None:
    """Batches of captions that the stream learns from at once."""
    captions = [scene.caption for scene in scenes("test", (start + batches) * BATCH)]
    for number in range(start, start + batches):
        client.retrieve(text=captions[number * BATCH : (number + 1) * BATCH], stream=stream, adapt="sync")


def visit(page: Page, stream: str) -> None:
    page.goto(f"/#/streams/{stream}")
    expect(page.get_by_role("heading", level=1, name=stream)).to_be_visible()


def shows_version(page: Page, version: int) -> None:
    expect(page.get_by_text(re.compile(rf"^Version {version} ·"))).to_be_visible()


def confirm(page: Page, title: str, action: str) -> None:
    page.get_by_role("dialog", name=title).get_by_role("button", name=action, exact=True).click()


def take_snapshot(page: Page, name: str, note: str = "") -> None:
    page.get_by_role("button", name="Take snapshot").click()
    dialog = page.get_by_role("dialog", name="Take a snapshot")
    dialog.get_by_label("Name").fill(name)
    dialog.get_by_label("Note").fill(note)
    dialog.get_by_role("button", name="Take it").click()
    expect(snapshot(page, name)).to_be_visible()


def snapshot(page: Page, name: str) -> Locator:
    held = page.get_by_role("list", name="Snapshots").get_by_role("listitem")
    return held.filter(has=page.get_by_role("button", name=f"Restore {name}", exact=True))


def test_a_stream_comes_learns_and_goes_while_someone_watches(
    page: Page, client: Client, stream: str
) -> None:
    page.goto("/#/streams")
    expect(page.get_by_role("heading", level=1, name="Streams")).to_be_visible()
    send(client, stream)
    row = page.get_by_role("row", name=stream)
    expect(row).to_contain_text("learning")
    send(client, stream, 2, start=1)
    expect(row.get_by_role("img", name=re.compile("^Modality gap: from"))).to_be_visible()

    row.get_by_role("link", name=stream).click()
    shows_version(page, 3)
    batches = page.get_by_role("img", name="The last 3 batches: 3 learned from, 0 skipped, 0 undone")
    expect(batches).to_be_visible()
    expect(page.get_by_role("figure", name=re.compile("^Loss, 3 points"))).to_be_visible()
    send(client, stream, 1, start=3)
    shows_version(page, 4)
    expect(page.get_by_role("figure", name=re.compile("^Modality gap, 4 points.*target"))).to_be_visible()

    client.delete_stream(stream)
    expect(page.get_by_role("heading", name="This stream is gone")).to_be_visible()


def test_the_stream_that_harms_itself_stands_first_and_says_why(
    page: Page, client: Client, stream: str
) -> None:
    send(client, f"{stream}-good")
    client.configure_stream(f"{stream}-harmed", settings={"learning_rate": 0.03})
    send(client, f"{stream}-harmed", 2)
    page.goto("/#/streams")
    page.get_by_label("Find by name").fill(stream)
    rows = page.get_by_role("row", name=stream)
    expect(rows).to_have_count(2)
    page.get_by_role("button", name="Stream", exact=True).click()
    expect(rows.first).to_contain_text("-good")
    page.get_by_role("button", name="State").click()
    expect(rows.first).to_contain_text("guarded: reset")
    expect(page.get_by_role("status").filter(has_text="attention")).to_contain_text("need")
    feed = page.get_by_role("region", name="What the guard did")
    expect(feed.get_by_role("listitem").filter(has_text=f"{stream}-harmed")).to_contain_text(
        "adaptation did harm"
    )


def test_a_reset_asks_first(page: Page, client: Client, stream: str) -> None:
    send(client, stream, 2)
    visit(page, stream)
    shows_version(page, 2)
    page.get_by_role("button", name="Reset").click()
    confirm(page, f"Reset “{stream}”?", "Cancel")
    expect(page.get_by_role("dialog")).to_have_count(0)
    assert client.describe_stream(stream)["version"] == 2
    page.get_by_role("button", name="Reset").click()
    confirm(page, f"Reset “{stream}”?", "Reset")
    shows_version(page, 0)
    assert client.describe_stream(stream)["version"] == 0


def test_a_snapshot_is_compared_with_what_came_after_and_restored(
    page: Page, client: Client, stream: str
) -> None:
    send(client, stream, 2)
    visit(page, stream)
    take_snapshot(page, "before", "before the new cameras")
    expect(snapshot(page, "before")).to_contain_text("before the new cameras")
    send(client, stream, 2, start=2)
    shows_version(page, 4)

    page.get_by_role("button", name="Compare", exact=True).click()
    compared = page.get_by_role("dialog", name="before and now")
    sides = compared.get_by_role("table", name="In all")
    expect(sides.get_by_role("row", name="Version")).to_have_text("Version24")
    expect(compared).to_contain_text(re.compile(r"Their weights are \d.* % apart"))
    layers = compared.get_by_role("listitem")
    assert 1 <= layers.count() <= 12
    page.keyboard.press("Escape")

    snapshot(page, "before").get_by_role("button", name="Restore before").click()
    confirm(page, "Restore “before”?", "Restore")
    shows_version(page, 2)
    expect(page.get_by_role("img", name=re.compile("^The last 2 batches"))).to_be_visible()
    assert client.describe_stream(stream)["version"] == 2


def test_a_snapshot_travels_as_a_file_under_another_name(
    page: Page, client: Client, stream: str, tmp_path: Path
) -> None:
    send(client, stream)
    visit(page, stream)
    take_snapshot(page, "original")
    with page.expect_download() as coming:
        snapshot(page, "original").get_by_role("button", name="Download original").click()
    file = coming.value
    assert file.suggested_filename == f"{stream}-original.attune"
    file.save_as(tmp_path / file.suggested_filename)

    page.get_by_text("Upload a snapshot file").click()
    page.get_by_label("Name here").fill("copy")
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Choose a file").click()
    chooser.value.set_files(tmp_path / file.suggested_filename)
    expect(snapshot(page, "copy")).to_contain_text("version 1")
    assert client.export_snapshot(stream, "copy") == client.export_snapshot(stream, "original")

    page.get_by_role("button", name="Delete …").click()
    confirm(page, f"Delete “{stream}” and its 2 snapshots?", "Delete it all")
    expect(page.get_by_role("heading", level=1, name="Streams")).to_be_visible()
    assert stream not in [card["name"] for card in client.list_streams()]


def test_another_method_asks_before_it_drops_what_was_learned(
    page: Page, client: Client, stream: str
) -> None:
    send(client, stream)
    visit(page, stream)
    form = page.get_by_role("form", name="Retrieval method")
    form.get_by_text("Its settings").click()
    form.get_by_label("steps").fill("99")
    expect(form.get_by_role("alert")).to_have_text("It has to be at most 20.")
    form.get_by_label("steps").fill("2")
    form.get_by_role("button", name="Save method").click()
    expect(page.get_by_text("What has been learned stays.")).to_be_visible()
    assert client.describe_stream(stream)["settings"] == {"steps": 2}

    form.get_by_role("combobox", name="Retrieval method").select_option("tent")
    form.get_by_role("button", name="Save method").click()
    confirm(page, "Change from tcr to tent?", "Change and drop")
    expect(page.get_by_text("What had been learned was dropped.")).to_be_visible()
    changed = client.describe_stream(stream)
    assert (changed["method"], changed["settings"], changed["version"]) == ("tent", {}, 0)


def test_streams_are_no_wider_than_a_phone(phone: Page, client: Client, stream: str) -> None:
    name = f"{stream}-with-a-name-that-takes-a-lot-of-room-on-a-small-screen"
    send(client, name, 2)
    client.create_snapshot(name, "a-snapshot-with-a-long-name", note="w" * 200)
    wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    phone.goto("/#/streams")
    phone.get_by_role("listitem").filter(has_text=name).get_by_role("link").first.click()
    expect(phone.get_by_role("heading", level=1, name=name)).to_be_visible()
    expect(snapshot(phone, "a-snapshot-with-a-long-name")).to_be_visible()
    assert phone.evaluate(wide) == 0
    phone.get_by_role("link", name="All streams").click()
    expect(phone.get_by_role("listitem").filter(has_text=name).first).to_be_visible()
    assert phone.evaluate(wide) == 0
