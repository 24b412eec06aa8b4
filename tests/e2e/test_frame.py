"""What all views of the console share: keyboard, names, colours, width, and what the browser is held to."""

from __future__ import annotations

import re
from typing import Any

import pytest
from playwright.sync_api import Browser, Error, Page, expect

VIEWS = ("Search", "Streams", "Classify", "Galleries")
PAGES = (*VIEWS, "Galleries/demo")
CONTROLS = ("button", "link", "textbox", "searchbox", "combobox", "listbox", "checkbox", "radio", "slider")
NAMED_ROLES = frozenset(
    (*CONTROLS, "spinbutton", "switch", "tab", "progressbar", "dialog", "img", "image", "region")
)
"""Roles that are nothing without a name."""

# Ratio of contrast of each visible text on the first ground below it that is opaque; those under 4.5.
FAINT_TEXTS = """() => {
  const parse = (text) => {
    const numbers = (text.match(/[\\d.]+(e-?\\d+)?/g) ?? []).map(Number);
    const scale = text.startsWith('color(') ? 255 : 1;
    const [r = 0, g = 0, b = 0, a = 1] = numbers;
    return { rgb: [r * scale, g * scale, b * scale], a };
  };
  const light = (rgb) => {
    const linear = (c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    const [r, g, b] = rgb.map((c) => linear(c / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const style = getComputedStyle(at);
      if (style.backgroundImage !== 'none' || Number(style.opacity) < 1) return null;
      const { rgb, a } = parse(style.backgroundColor);
      if (a === 1) return rgb;
      if (a > 0) return null;
    }
    return null;
  };
  const faint = [];
  const seen = new Set();
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node && seen.size < 600; node = walker.nextNode()) {
    const element = node.parentElement;
    if (!node.data.trim() || seen.has(element)) continue;
    if (element.closest(':disabled, option, noscript, .unseen')) continue;
    seen.add(element);
    if (!element.checkVisibility({ visibilityProperty: true })) continue;
    const below = ground(element);
    const { rgb, a } = parse(getComputedStyle(element).color);
    if (!below || a < 1) continue;
    const [high, low] = [light(rgb), light(below)].sort((one, other) => other - one);
    const ratio = (high + 0.05) / (low + 0.05);
    if (ratio < 4.5) faint.push(`${node.data.trim().slice(0, 40)}: ${ratio.toFixed(2)}`);
  }
  return { faint, looked: seen.size };
}"""

IDS_TWICE = """() => {
  const ids = [...document.querySelectorAll('[id]')].map((element) => element.id);
  return ids.filter((id, place) => ids.indexOf(id) !== place);
}"""

# What a busy badge and something with a transition do, whatever the views hold now.
MOVEMENT = """() => {
  const badge = Object.assign(document.createElement('span'), { className: 'badge busy' });
  const part = document.createElement('span');
  part.style.transition = 'opacity 2s';
  document.querySelector('main').append(badge, part);
  const { animationName } = getComputedStyle(badge, '::before');
  const found = [animationName, getComputedStyle(part).transitionDuration];
  badge.remove();
  part.remove();
  return found;
}"""


def show(page: Page, view: str) -> None:
    """Go there, and wait until the view and the server's figures are on the page."""
    page.goto(f"/#/{view.lower()}")
    expect(page.get_by_role("heading", level=1)).to_have_count(1)
    expect(
        page.get_by_role("navigation", name="Views").get_by_role("link", name=view.partition("/")[0])
    ).to_have_attribute("aria-current", "page")
    expect(page.locator(".status")).to_contain_text("live")


def nameless(page: Page) -> list[str]:
    """Controls and pictures that the browser has no name for, as a screen reader would meet them."""
    session = page.context.new_cdp_session(page)
    nodes: list[dict[str, Any]] = session.send("Accessibility.getFullAXTree")["nodes"]
    session.detach()
    found = []
    for node in nodes:
        role = node.get("role", {}).get("value", "")
        if node.get("ignored") or role not in NAMED_ROLES:
            continue
        if not str(node.get("name", {}).get("value", "")).strip():
            found.append(role)
    return found


def focused(page: Page) -> str:
    """The text or the label of what has the focus."""
    return str(
        page.evaluate("document.activeElement.ariaLabel ?? document.activeElement.textContent?.trim() ?? ''")
    )


def test_the_keyboard_alone_walks_the_page(page: Page) -> None:
    page.keyboard.press("Tab")
    assert focused(page) == "To the content"
    expect(page.get_by_role("link", name="To the content")).to_be_in_viewport()
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()

    page.reload()
    walked = []
    for _ in range(7):
        page.keyboard.press("Tab")
        walked.append(focused(page))
    assert walked == ["To the content", "Attune", *VIEWS, "API"]
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()
    expect(page.get_by_role("heading", level=1, name="Galleries")).to_be_visible()
    expect(page).to_have_title("Galleries · Attune")
    page.go_back()
    expect(page).to_have_title("Search · Attune")
    expect(page.locator("main")).to_be_focused()


def test_every_view_has_names_for_its_controls_and_can_be_read_in_light_and_in_dark(page: Page) -> None:
    """All views on one page: what takes the time is to load it."""
    found = []
    for view in PAGES:
        show(page, view)
        found += [f"{view}: a {role} without a name" for role in nameless(page)]
        found += [f"{view}: id {name} is there twice" for name in page.evaluate(IDS_TWICE)]
        pictures = []
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            expect(page.locator("html")).to_have_attribute("data-theme", scheme)
            read = page.evaluate(FAINT_TEXTS)
            assert read["looked"] > 5, view
            found += [f"{view}, {scheme}: {text}" for text in read["faint"]]
            pictures.append(page.screenshot())
        assert pictures[0] != pictures[1], view
    assert found == []


def test_no_view_is_wider_than_a_phone(phone: Page) -> None:
    wide = {}
    for view in PAGES:
        show(phone, view)
        wide[view] = phone.evaluate(
            "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )
    assert wide == dict.fromkeys(PAGES, 0)


def test_the_chosen_colours_outlive_the_page(page: Page) -> None:
    page.emulate_media(color_scheme="light")
    page.get_by_role("button", name="Use dark colours").click()
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    page.reload()
    expect(page.get_by_role("button", name="Use light colours")).to_be_visible()
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")


def test_nothing_moves_for_those_who_asked_for_that(page: Page) -> None:
    page.emulate_media(reduced_motion="reduce")
    assert page.evaluate(MOVEMENT) == ["none", "0s"]
    page.emulate_media(reduced_motion="no-preference")
    assert page.evaluate(MOVEMENT) == ["pulse", "2s"]


def test_the_browser_is_held_to_this_server(browser: Browser, address: str) -> None:
    context = browser.new_context(base_url=address)
    page = context.new_page()
    answer = page.goto("/")
    assert answer is not None
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    page.get_by_role("navigation", name="Views").wait_for()
    with page.expect_event("console", lambda said: "TrustedScript" in said.text):
        page.evaluate(
            "const script = document.createElement('script');"
            "script.append('window.ran = 1');"
            "document.head.append(script);"
        )
    assert page.evaluate("window.ran") is None
    with page.expect_event("console", lambda said: "Content Security Policy" in said.text):
        page.evaluate("fetch('http://127.0.0.1:1/').catch(() => null)")
    with pytest.raises(Error, match="TrustedHTML"):
        page.evaluate("document.body.innerHTML = '<b>text that became markup</b>'")
    context.close()


def test_the_first_paint_shows_something(page: Page) -> None:
    page.wait_for_function("performance.getEntriesByName('first-contentful-paint').length === 1")


def test_the_documentation_is_a_link_away(page: Page) -> None:
    link = page.get_by_role("navigation", name="Views").get_by_role("link", name="API")
    expect(link).to_have_attribute("href", "/docs")
    assert page.request.get("/docs").ok


def test_what_the_page_did_can_be_copied_by_keyboard(page: Page) -> None:
    show(page, "Galleries")
    page.get_by_role("button", name="New gallery").click()
    page.get_by_label("Name").fill("copied")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1, name="copied")).to_be_visible()

    button = page.get_by_role("button", name="Copy as curl / Python")
    button.focus()
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog", name="POST /galleries")
    expect(dialog).to_contain_text("curl -s -X POST")
    # The dialog keeps the focus, however far one walks.
    for _ in range(8):
        page.keyboard.press("Tab")
        assert page.evaluate(
            "document.activeElement === document.body || document.activeElement.closest('dialog') !== null"
        )
    dialog.get_by_role("radio", name="curl").press("ArrowRight")
    expect(dialog).to_contain_text('client.create_gallery("copied"')
    dialog.get_by_role("button", name="Copy").click()
    assert 'client.create_gallery("copied"' in page.evaluate("navigator.clipboard.readText()")
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    expect(button).to_be_focused()

    page.get_by_role("button", name=re.compile("Delete gallery")).click()
    page.get_by_role("dialog").get_by_role("button", name="Delete gallery").click()
    expect(page.get_by_role("heading", level=1, name="Galleries")).to_be_visible()


def test_a_tab_that_nobody_sees_lets_its_connection_go_and_comes_back(page: Page) -> None:
    sight = """(state) => {
      Object.defineProperty(document, 'visibilityState', { value: state, configurable: true });
      document.dispatchEvent(new Event('visibilitychange'));
    }"""
    status = page.locator(".status")
    expect(status).to_contain_text("live")
    page.clock.install()
    page.evaluate(sight, "hidden")
    page.clock.fast_forward(14_000)
    expect(status).to_contain_text("live")
    page.clock.fast_forward(2_000)
    expect(status).to_contain_text("connecting")
    page.clock.resume()
    page.evaluate(sight, "visible")
    expect(status).to_contain_text("live")
