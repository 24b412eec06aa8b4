"""Galleries in the console: made, filled, looked through and deleted by a person."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator, Sequence
from uuid import uuid4

import httpx
import pytest
from playwright.sync_api import FilePayload, Page, Route, expect

from demo.scenes import render, scenes

START = "/#/galleries"


@pytest.fixture
def gallery(address: str) -> Iterator[str]:
    """An empty one that is gone afterwards."""
    name = f"e2e-{uuid4().hex[:8]}"
    httpx.post(f"{address}/galleries", json={"name": name}).raise_for_status()
    yield name
    httpx.delete(f"{address}/galleries/{name}")


@pytest.fixture(scope="module")
def pictures() -> list[FilePayload]:
    """Four scenes as PNG files, scene-0.png and so on."""
    made: list[FilePayload] = []
    for number, scene in enumerate(scenes("test", 4)):
        content = io.BytesIO()
        render(scene).save(content, "PNG")
        made.append({"name": f"scene-{number}.png", "mimeType": "image/png", "buffer": content.getvalue()})
    return made


def file(name: str, content: bytes, kind: str = "") -> FilePayload:
    return {"name": name, "mimeType": kind, "buffer": content}


def choose(page: Page, files: Sequence[FilePayload]) -> None:
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Choose files").click()
    chooser.value.set_files(files)


def drop(page: Page, files: Sequence[FilePayload]) -> None:
    """As the browser tells a page of files that are let go over it."""
    named = [[one["name"], one["mimeType"], base64.b64encode(one["buffer"]).decode()] for one in files]
    transfer = page.evaluate_handle(
        """(files) => {
          const transfer = new DataTransfer();
          for (const [name, type, content] of files) {
            const bytes = Uint8Array.from(atob(content), (character) => character.charCodeAt(0));
            transfer.items.add(new File([bytes], name, { type }));
          }
          return transfer;
        }""",
        named,
    )
    page.get_by_text("Drop pictures or a folder here").dispatch_event("drop", {"dataTransfer": transfer})


def open_gallery(page: Page, name: str) -> None:
    page.goto(f"/#/galleries/{name}")
    expect(page.get_by_role("heading", level=1, name=name)).to_be_visible()


def test_a_gallery_is_made_filled_by_dropping_looked_at_and_deleted(
    page: Page, pictures: list[FilePayload]
) -> None:
    name = f"made-{uuid4().hex[:8]}"
    page.goto("/#/galleries")
    other = page.context.new_page()
    other.goto("/#/galleries")
    expect(other.get_by_role("heading", name="demo")).to_be_visible()
    page.bring_to_front()

    page.get_by_role("button", name="New gallery").click()
    dialog = page.get_by_role("dialog", name="New gallery")
    dialog.get_by_label("Name").fill("No Blanks")
    expect(dialog).to_contain_text("Lower-case letters only")
    expect(dialog.get_by_role("button", name="Create")).to_be_disabled()
    dialog.get_by_label("Name").fill(name)
    dialog.get_by_label("Calibration").select_option("encoder")
    dialog.get_by_role("button", name="Create").click()
    expect(page.get_by_role("heading", level=1, name=name)).to_be_visible()
    expect(page.locator("main")).to_contain_text("completed by “encoder”")
    expect(other.get_by_role("heading", name=name)).to_be_visible()

    captions = file("captions.tsv", b"file\tcaption\nscene-0.png\tthe first scene\nmissing.png\tnobody\n")
    lines = file(
        "more.jsonl", b'{"id": "words", "text": "a red circle", "payload": {"colour": "red"}}\nnonsense\n'
    )
    drop(page, [*pictures, captions, lines, file("notes.png", b"these are words", "image/png")])
    expect(page.get_by_role("heading", name="5 items will be added")).to_be_focused()
    plan = page.get_by_role("region", name="What will be added")
    expect(plan.get_by_role("row", name="notes.png")).to_contain_text("not a picture")
    expect(plan.get_by_role("row", name="scene-0.png")).to_contain_text("the first scene")
    expect(page.locator("main")).to_contain_text("there is no picture missing.png")
    expect(page.locator("main")).to_contain_text("more.jsonl, line 2: not JSON")
    page.get_by_role("button", name="Add 5 items").click()
    expect(page.get_by_role("heading", name="5 added")).to_be_visible()

    tile = page.get_by_role("button", name="Open scene-0.png")
    expect(tile.get_by_role("img", name="the first scene")).to_have_js_property("complete", value=True)
    assert tile.get_by_role("img").evaluate("(image) => image.naturalWidth") > 0
    page.get_by_role("button", name="Open words").click()
    item = page.get_by_role("dialog", name="words")
    expect(item.get_by_label("Payload")).to_have_text(re.compile('"colour": "red"'))
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Open words")).to_be_focused()

    drop(page, pictures[:1])
    expect(page.get_by_role("row", name="scene-0.png")).to_contain_text("replaces")
    page.get_by_role("button", name="Add 1 item").click()
    expect(page.get_by_role("heading", name="1 replaced")).to_be_visible()

    page.get_by_role("checkbox", name="Select scene-1.png").check()
    page.get_by_role("checkbox", name="Select words").check()
    page.get_by_role("button", name="Delete selected").click()
    page.get_by_role("dialog", name="Delete 2 items?").get_by_role("button", name="Delete").click()
    expect(page.get_by_role("button", name="Open words")).to_have_count(0)
    expect(page.get_by_role("button", name=re.compile("^Open scene"))).to_have_count(3)

    page.get_by_role("button", name="Delete gallery").click()
    dialog = page.get_by_role("dialog", name=f"Delete {name}?")
    dialog.get_by_role("button", name="Cancel").click()
    page.get_by_role("button", name="Delete gallery").click()
    dialog.get_by_role("button", name="Delete 3 items").click()
    expect(page.get_by_role("heading", level=1, name="Galleries")).to_be_visible()
    expect(page.get_by_role("heading", name=name)).to_have_count(0)
    expect(other.get_by_role("heading", name=name)).to_have_count(0)


def test_a_picture_that_the_server_refuses_does_not_keep_its_neighbours_out(
    page: Page, gallery: str, pictures: list[FilePayload]
) -> None:
    open_gallery(page, gallery)
    cut = file("cut.png", pictures[0]["buffer"][:200], "image/png")
    choose(page, [*pictures[:2], cut, *pictures[2:]])
    page.get_by_role("button", name="Add 5 items").click()
    expect(page.get_by_role("heading", name="4 added, 1 failed")).to_be_visible()
    expect(page.get_by_role("region", name="What failed").get_by_role("row", name="cut.png")).to_contain_text(
        "picture"
    )
    expect(page.get_by_role("button", name=re.compile("^Open scene"))).to_have_count(4)
    page.get_by_role("button", name="Retry the failed").click()
    expect(page.get_by_role("heading", name="1 failed", exact=True)).to_be_visible()


def test_an_upload_waits_for_a_busy_server_and_can_be_stopped(page: Page, gallery: str) -> None:
    """The first request is told to come again; the next is held until the person has pressed Stop."""
    seen: list[Route] = []
    refused = {"error": {"code": "queue_full", "message": "the queue is full", "details": {}}}

    def answer(route: Route) -> None:
        seen.append(route)
        if len(seen) == 1:
            route.fulfill(status=429, headers={"Retry-After": "1"}, json=refused)
        elif len(seen) > 2:
            route.continue_()

    held = re.compile(f"/galleries/{gallery}/items$")
    page.route(held, answer)
    open_gallery(page, gallery)
    lines = "\n".join(f'{{"id": "t{number}", "text": "a red circle {number}"}}' for number in range(40))
    choose(page, [file("texts.jsonl", lines.encode())])
    page.get_by_role("button", name="Add 40 items").click()
    with page.expect_request(held):
        expect(page.get_by_text("Waiting for the server: the queue is full")).to_be_visible()
        expect(page.get_by_role("progressbar")).to_be_visible()
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_role("button", name="Stopping …")).to_be_visible()
    seen[1].continue_()
    # The request under way is waited for; no other follows.
    expect(page.get_by_role("heading", name="24 added, 16 not sent")).to_be_visible()
    page.get_by_role("button", name="Send the rest").click()
    expect(page.get_by_role("heading", name="16 added")).to_be_visible()
    expect(page.locator("main")).to_contain_text("40 items")


def test_one_item_is_added_with_a_form_and_replaced_only_when_asked(
    page: Page, gallery: str, pictures: list[FilePayload]
) -> None:
    open_gallery(page, gallery)
    form = page.get_by_role("dialog", name=f"Add an item to {gallery}")
    for number, text in enumerate(("a caption", "another")):
        page.get_by_role("button", name="Add one").click()
        expect(form.get_by_role("button", name="Add", exact=True)).to_be_disabled()
        with page.expect_file_chooser() as chooser:
            form.get_by_role("button", name="Choose a picture").click()
        chooser.value.set_files(pictures[:1])
        expect(form.get_by_label("Id")).to_have_value("scene-0.png")
        form.get_by_label("Text").fill(text)
        form.get_by_label("Payload").fill("[1]")
        expect(form).to_contain_text("A JSON object")
        form.get_by_label("Payload").fill('{"price": 5}')
        form.get_by_role("button", name="Add", exact=True).click()
        if number == 1:
            page.get_by_role("dialog", name="Replace").get_by_role("button", name="Replace").click()
        expect(form).to_have_count(0)
        expect(page.get_by_role("button", name="Open scene-0.png")).to_contain_text(text)


def test_a_large_gallery_is_looked_through_page_by_page(page: Page) -> None:
    open_gallery(page, "demo")
    expect(page.get_by_role("heading", name=re.compile("1.100 of 200"))).to_be_visible()
    expect(page.get_by_role("button", name="Previous")).to_be_disabled()
    page.get_by_role("button", name="Next").click()
    expect(page.get_by_role("heading", name=re.compile("101.200 of 200"))).to_be_focused()
    page.get_by_role("button", name="Open gallery-000100").click()
    page.get_by_role("dialog").get_by_role("button", name="Search with this").click()
    expect(page.get_by_role("heading", level=1, name="Search")).to_be_visible()
    expect(page.get_by_role("button", name="Remove")).to_be_visible()
    expect(page.get_by_role("region", name="Results")).to_contain_text("gallery-000")


def test_what_is_not_there_is_said(page: Page) -> None:
    page.goto("/#/galleries/nowhere")
    expect(page.get_by_role("status").filter(has_text="There is no gallery “nowhere”")).to_be_visible()
    page.get_by_role("link", name="Back to all galleries").click()
    expect(page.get_by_role("heading", level=1, name="Galleries")).to_be_visible()


def test_the_name_of_a_large_gallery_is_typed_before_it_is_deleted(page: Page, gallery: str) -> None:
    def grown(route: Route) -> None:
        body = route.fetch().json()
        for card in body["galleries"]:
            card["items"] += 2000 * (card["name"] == gallery)
        route.fulfill(json=body)

    page.route(re.compile("/galleries$"), grown)
    page.goto("/#/galleries")
    page.reload()
    page.get_by_role("button", name=f"Delete {gallery}").click()
    dialog = page.get_by_role("dialog", name=f"Delete {gallery}?")
    expect(dialog).to_contain_text("Its 2,000 items go with it")
    button = dialog.get_by_role("button", name="Delete 2,000 items")
    dialog.get_by_role("textbox").fill(gallery[:-1])
    expect(button).to_be_disabled()
    dialog.get_by_role("textbox").fill(gallery)
    button.click()
    expect(page.get_by_role("heading", name=gallery)).to_have_count(0)
