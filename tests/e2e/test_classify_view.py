"""The classify view: clips, what is done to them, both models' answers, a run, camera and microphone."""

from __future__ import annotations

import re
from uuid import uuid4

import pytest
from playwright.sync_api import Locator, Page, expect

from demo.clips import LABELS

START = "/#/classify"

# Remembers every device that is opened, so that a test can tell which are in use.
WATCH_DEVICES = """() => {
  const open = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
  window.opened = [];
  navigator.mediaDevices.getUserMedia = async (wanted) => {
    const media = await open(wanted);
    window.opened.push(...media.getTracks());
    return media;
  };
}"""
REFUSE_DEVICES = """() => {
  navigator.mediaDevices.getUserMedia = async () => { throw new DOMException("", "NotAllowedError"); };
}"""
LIVE_DEVICES = (
    "window.opened.filter((track) => track.readyState === 'live').map((track) => track.kind).sort().join()"
)


@pytest.fixture
def view(page: Page) -> Page:
    """Of a stream that no other test knows."""
    return entered(page)


def entered(page: Page) -> Page:
    page.goto("/#/classify")
    expect(page.locator(".status")).to_contain_text("live")
    expect(clips(page)).to_have_count(12)
    page.get_by_label("Stream", exact=True).fill(f"e2e-{uuid4().hex[:8]}")
    page.get_by_label("Stream", exact=True).press("Enter")
    return page


def clips(page: Page) -> Locator:
    return page.get_by_role("list", name="Demo clips").get_by_role("button")


def answer(page: Page) -> Locator:
    return page.get_by_role("region", name="Answer")


def bars(page: Page) -> Locator:
    return answer(page).get_by_role("list", name="Labels, the likeliest first").get_by_role("listitem")


def source(page: Page) -> Locator:
    return page.get_by_role("region", name="Sample")


def test_a_clip_shows_probabilities_of_both_models_and_its_true_label(view: Page) -> None:
    clip = clips(view).nth(3)
    label = (clip.get_attribute("aria-label") or "").split(": ")[1]
    assert label in LABELS
    expect(answer(view)).to_contain_text("Choose a sample")
    clip.click()
    expect(clip).to_have_attribute("aria-pressed", "true")
    expect(bars(view)).to_have_count(5)
    true = bars(view).filter(has_text="(the true label)")
    expect(true).to_have_count(1)
    expect(true).to_contain_text(label)
    for model in ("Source model", "Adapted stream"):
        expect(true).to_contain_text(re.compile(rf"{model}: \d+\.\d %"))
    expect(answer(view)).to_contain_text("brimpr · version 0 · audio+video → label")
    expect(answer(view)).to_contain_text(re.compile(r"Entropy: source \S+ nats, adapted \S+ nats"))
    expect(view.get_by_role("img", name="The picture as it is sent")).to_be_visible()
    expect(view.get_by_role("img", name="The sound as it is sent, 1.3 seconds")).to_be_visible()

    view.get_by_role("button", name="Copy as curl / Python").click()
    code = view.get_by_role("dialog").locator("code")
    expect(code).to_contain_text("base64 -w0 clip-")
    view.get_by_text("Python", exact=True).click()
    expect(code).to_contain_text(
        re.compile(r'client\.classify\(audio="clip-\d+\.wav", image="clip-\d+\.png"')
    )


def test_what_is_left_out_or_corrupted_changes_the_answer(view: Page) -> None:
    clips(view).nth(5).click()
    expect(bars(view)).to_have_count(5)
    view.get_by_label("No sound").check()
    expect(answer(view)).to_contain_text("There was no sound:")
    view.get_by_label("No picture").check()
    expect(answer(view).get_by_role("alert")).to_contain_text("both left out")
    view.get_by_label("No sound").uncheck()
    expect(answer(view)).to_contain_text("There was no picture:")
    view.get_by_label("No picture").uncheck()
    expect(answer(view)).not_to_contain_text("There was no")

    probability = bars(view).first.inner_text()
    with view.expect_response("**/corruptions") as corrupted:
        view.get_by_label("Corrupt the sound").select_option("gaussian_noise")
    assert corrupted.value.request.post_data_json["severity"] == 5
    expect(bars(view).first).not_to_have_text(probability)
    with view.expect_response("**/corruptions") as weaker:
        source(view).get_by_role("slider", name="Severity").first.press("ArrowLeft")
    assert weaker.value.request.post_data_json["severity"] == 4


def test_clips_play_one_after_the_other_until_stopped(view: Page) -> None:
    view.get_by_role("button", name="Play 24 clips").click()
    expect(answer(view)).to_contain_text("2 of 24 answered")
    expect(answer(view)).to_contain_text(re.compile(r"\d of \d right"))
    view.get_by_role("button", name="Stop", exact=True).click()
    expect(view.get_by_role("button", name="Play 24 clips")).to_be_visible()
    expect(answer(view).get_by_role("status").filter(has_text="samples answered")).to_have_count(1)


def test_a_run_scores_both_models_and_stops(view: Page) -> None:
    run = view.get_by_role("region", name="Send a stream")
    name = f"e2e-{uuid4().hex[:8]}"
    run.get_by_label("Stream's name").fill(name)
    run.get_by_role("button", name="Start").click()
    expect(run.get_by_role("progressbar")).to_have_accessible_name(
        re.compile(rf"\d+ of 256 clips sent to {name}")
    )
    expect(run.get_by_role("progressbar")).to_have_accessible_name(re.compile(r"^(?!0 )"))
    accuracy = run.get_by_role("group", name="Accuracy over the second half")
    expect(accuracy).to_contain_text(re.compile(r"Source\s*\d+\.\d %\s*Adapted\s*\d+\.\d %"))
    run.get_by_role("button", name="Stop").click()
    ending = run.get_by_text("Stopped after")
    expect(ending).to_have_text(re.compile(r"^Stopped after \d+ of 256 clips\. Of the last \d+ samples .*"))
    expect(run.get_by_role("button", name="Start")).to_be_focused()
    run.get_by_role("button", name="Ask about one of these").click()
    expect(view.get_by_label("Stream", exact=True)).to_have_value(name)
    expect(answer(view)).to_contain_text(re.compile(r"brimpr · version [1-9]"))


def test_camera_and_microphone_are_answered_and_let_go(view: Page) -> None:
    view.evaluate(WATCH_DEVICES)
    source(view).get_by_text("Camera & mic").click()
    source(view).get_by_role("button", name="Start").click()
    expect(answer(view)).to_contain_text(re.compile(r"[2-9] answered"))
    expect(answer(view)).to_contain_text("audio+video → label")
    assert view.evaluate(LIVE_DEVICES) == "audio,video"
    source(view).get_by_role("button", name="Stop", exact=True).click()
    assert view.evaluate(LIVE_DEVICES) == ""

    # Whoever leaves does not want to be seen either.
    source(view).get_by_role("button", name="Start").click()
    expect(view.get_by_label("What the camera sees")).to_be_visible()
    view.get_by_role("navigation", name="Views").get_by_role("link", name="Streams").click()
    expect(view.get_by_role("heading", level=1, name="Streams")).to_be_visible()
    # A view cleans up after the next one has been painted.
    view.wait_for_function(f"{LIVE_DEVICES} === ''")


def test_a_device_that_goes_away_or_is_refused_is_told(view: Page) -> None:
    view.evaluate(WATCH_DEVICES)
    source(view).get_by_text("Camera & mic").click()
    source(view).get_by_role("button", name="Start").click()
    expect(answer(view)).to_contain_text(re.compile(r"\d answered"))
    view.evaluate(
        """() => {
          const camera = window.opened.find((track) => track.kind === 'video');
          camera.stop();
          camera.dispatchEvent(new Event('ended'));
        }"""
    )
    expect(source(view).get_by_role("alert")).to_contain_text("The camera is gone")
    expect(answer(view)).to_contain_text("There was no picture:")
    source(view).get_by_role("button", name="Stop", exact=True).click()

    view.evaluate(REFUSE_DEVICES)
    source(view).get_by_role("button", name="Start").click()
    expect(source(view).get_by_role("alert")).to_contain_text("The microphone was not allowed")
    source(view).get_by_text("Demo clips").click()
    clips(view).first.click()
    expect(bars(view)).to_have_count(5)


def test_pictures_are_matched_with_labels_of_ones_own(view: Page) -> None:
    answer(view).get_by_text("My labels").click()
    picture = view.get_by_role("list", name="Pictures of the gallery").get_by_role("button").first
    picture.click()
    view.get_by_label("Labels, with commas or on lines").fill("red circle")
    expect(answer(view)).to_contain_text("Write two labels or more")
    view.get_by_label("Labels, with commas or on lines").fill("circle, square\nstar")
    expect(bars(view)).to_have_count(3)
    expect(answer(view)).to_contain_text("image → text")
    expect(view.get_by_role("region", name="Sound")).to_have_count(0)


def test_a_method_that_drops_what_was_learned_asks_first(view: Page) -> None:
    name = view.get_by_label("Stream", exact=True).input_value()
    view.get_by_label("Learning").select_option("sync")
    method = answer(view).get_by_role("combobox", name="Method")
    method.select_option("t3a")
    expect(view.get_by_text(f"Stream {name} classifies with t3a now")).to_be_visible()
    clips(view).first.click()
    expect(answer(view)).to_contain_text("t3a · version 1")
    method.select_option("tent")
    question = view.get_by_role("dialog", name="Drop what was learned?")
    expect(question).to_contain_text("learned from 1 batch")
    question.get_by_role("button", name="Cancel").click()
    expect(method).to_have_value("t3a")


def test_nothing_is_wider_than_a_phone(phone: Page) -> None:
    entered(phone)
    clips(phone).first.click()
    expect(bars(phone)).to_have_count(5)
    assert phone.evaluate("document.documentElement.scrollWidth") <= 390
