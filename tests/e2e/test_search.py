"""The console's first view: one query to both models, corruptions, and a stream of corrupted queries."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

from attune import Client
from demo.scenes import render, scenes

SCENE = scenes("gallery", 3)[2]


def column(page: Page, name: str) -> Locator:
    return page.get_by_role("region", name=name)


def hits(page: Page, name: str) -> Locator:
    return column(page, name).get_by_role("listitem")


def settled(page: Page) -> None:
    for name in ("Source model", "Adapted stream"):
        expect(column(page, name)).to_have_attribute("aria-busy", "false")


def listed(page: Page, name: str) -> list[str]:
    settled(page)
    return re.findall(r"gallery-\d{6}", " ".join(hits(page, name).all_inner_texts()))


def use_stream(page: Page, name: str) -> None:
    field = page.get_by_label("Stream", exact=True)
    field.fill(name)
    field.press("Enter")
    field.blur()
    expect(column(page, "Adapted stream")).to_contain_text(name)
    settled(page)


def take_sample(page: Page, part: str, id: str) -> None:
    page.get_by_role("group", name="Ask with a sample's").get_by_text(part, exact=True).click()
    page.get_by_role("button", name=f"{part.capitalize()} of {id}").click()
    expect(hits(page, "Source model").first).to_be_visible()
    settled(page)


def start_drift(page: Page, queries: int, stream: str) -> None:
    page.get_by_label("How many").select_option(str(queries))
    field = page.get_by_label("Stream's name")
    field.fill(stream)
    field.blur()
    page.get_by_role("button", name="Start", exact=True).click()


def test_the_page_has_searched_when_it_opens_and_a_caption_is_searched_with_enter(page: Page) -> None:
    expect(hits(page, "Source model")).to_have_count(8)
    expect(hits(page, "Adapted stream")).to_have_count(8)
    use_stream(page, "e2e-words")
    field = page.get_by_role("searchbox", name="What to look for")
    field.fill(SCENE.caption)
    field.press("Enter")
    for name in ("Source model", "Adapted stream"):
        expect(hits(page, name).first).to_contain_text(SCENE.caption)
    expect(column(page, "Adapted stream")).to_contain_text("version 0")
    page.get_by_label("Learning").select_option("off")
    expect(column(page, "Adapted stream")).to_have_count(0)
    expect(hits(page, "Source model").first).to_contain_text(SCENE.caption)


def test_a_picture_that_is_chosen_finds_its_caption(page: Page, tmp_path: Path) -> None:
    render(SCENE).save(tmp_path / "scene.png")
    use_stream(page, "e2e-picture")
    page.get_by_role("searchbox", name="What to look for").fill("")
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Choose a picture").click()
    chooser.value.set_files(tmp_path / "scene.png")
    expect(page.get_by_role("img", name="The picture that is asked with")).to_be_visible()
    expect(column(page, "Adapted stream")).to_contain_text("image → text")
    assert SCENE.id in listed(page, "Source model")
    page.get_by_role("searchbox", name="What to look for").fill("a red star")
    page.get_by_role("button", name="Search", exact=True).click()
    expect(column(page, "Adapted stream")).to_contain_text("image+text →")


def test_a_query_is_seen_to_degrade_and_is_searched_so(page: Page) -> None:
    use_stream(page, "e2e-corrupt")
    take_sample(page, "picture", "gallery-000003")
    expect(hits(page, "Source model").first).to_contain_text("the right one")
    clean = listed(page, "Source model")
    page.get_by_label("Of the picture").select_option("motion_blur")
    blurred = page.get_by_role("img", name="The picture with motion blur, severity 5")
    expect(blurred).to_be_visible()
    original = page.get_by_role("img", name="The picture as it was")
    assert blurred.get_attribute("src") != original.get_attribute("src")
    expect(hits(page, "Source model").first).not_to_contain_text("the right one")
    assert listed(page, "Source model") != clean
    page.get_by_role("region", name="Corrupt it").get_by_role("slider", name="Severity").fill("1")
    expect(page.get_by_role("img", name="The picture with motion blur, severity 1")).to_be_visible()
    expect(hits(page, "Source model").first).to_contain_text("the right one")
    page.get_by_label("Of the picture").select_option("clean")
    expect(blurred).to_have_count(0)

    take_sample(page, "words", "gallery-000003")
    page.get_by_label("Of the words").select_option("CI")
    expect(page.get_by_role("insertion").first).to_be_visible()


def test_news_of_other_streams_leave_alone_what_is_being_typed(page: Page, address: str) -> None:
    field = page.get_by_label("Stream's name")
    field.fill("half-typ")
    with Client(address) as client:
        client.retrieve(text="a red star", stream="e2e-news")
    expect(page.locator("option[value='e2e-news']").first).to_be_attached()
    expect(field).to_have_value("half-typ")


def test_a_stream_of_blurred_pictures_recovers_and_its_ranks_are_marked(page: Page) -> None:
    start_drift(page, 256, "e2e-drift")
    ended = page.get_by_text("Over the last 128 queries")
    expect(ended).to_be_visible(timeout=120_000)
    said = re.search(
        r"source ([\d.]+) %, adapted ([\d.]+) % \(recall@1\), ([\d.]+) points more", ended.inner_text()
    )
    assert said is not None, ended.inner_text()
    source, adapted, gain = map(float, said.groups())
    assert gain > 8
    assert adapted - source == pytest.approx(gain, abs=0.11)
    gap = page.get_by_role(
        "figure", name=re.compile(r"^Modality gap, 8 points\. batch: from 0\.\d+ to 0\.\d+; target")
    )
    expect(gap).to_be_visible()

    page.get_by_role("button", name="Compare one of these queries").click()
    expect(column(page, "Adapted stream")).to_contain_text("e2e-drift")
    expect(page.get_by_role("img", name="The picture with defocus blur, severity 5")).to_be_visible()
    marks = column(page, "Adapted stream").get_by_text(re.compile(r"^(up|down) \d+, from rank \d+$"))
    expect(marks.first).to_be_attached()
    before, after = listed(page, "Source model"), listed(page, "Adapted stream")
    for place, id in enumerate(after):
        row = hits(page, "Adapted stream").nth(place)
        gained = before.index(id) - place if id in before else None
        sign = (
            "new" if gained is None else "=" if gained == 0 else f"{'▲' if gained > 0 else '▼'}{abs(gained)}"
        )
        expect(row).to_contain_text(sign)


def test_a_stream_that_is_stopped_sends_no_more(page: Page) -> None:
    start_drift(page, 2048, "e2e-stop")
    expect(page.get_by_text(re.compile(r"^[1-9]\d* of 2048 queries sent"))).to_be_visible()
    page.get_by_role("button", name="Stop", exact=True).click()
    expect(page.get_by_text(re.compile(r"^Stopped after \d+ of 2048 queries\."))).to_be_visible()
    expect(page.get_by_role("button", name="Start", exact=True)).to_be_enabled()


@pytest.mark.parametrize("form", ["curl", "Python"])
def test_what_was_searched_can_be_repeated_elsewhere(page: Page, form: str) -> None:
    use_stream(page, "e2e-copy")
    field = page.get_by_role("searchbox", name="What to look for")
    field.fill('a fisherman\'s "boat" at $HOME')
    field.press("Enter")
    settled(page)
    expect(column(page, "Source model")).not_to_contain_text("the right one")
    shown = listed(page, "Adapted stream")
    page.get_by_role("button", name="Copy as curl / Python").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_text(form, exact=True).click()
    code = dialog.locator("code").inner_text()
    command = ["bash", "-c", code] if form == "curl" else [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    # Ids stand in the hits, and in the addresses of their previews.
    assert list(dict.fromkeys(re.findall(r"gallery-\d{6}", done.stdout))) == shown


def test_on_a_phone_one_column_is_shown_at_a_time(phone: Page) -> None:
    expect(hits(phone, "Adapted stream").first).to_be_visible()
    expect(hits(phone, "Source model").first).to_be_hidden()
    phone.get_by_role("group", name="Shown results").get_by_text("Source").click()
    expect(hits(phone, "Source model").first).to_be_visible()
    expect(hits(phone, "Adapted stream").first).to_be_hidden()
    assert phone.evaluate("document.documentElement.scrollWidth") == 390
