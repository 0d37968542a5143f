"""The report in headless Chromium: nothing goes wrong, nothing is asked for, everything is seen, on a desk and on a phone."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import report
from amygdala.reportfiles import FIGURES, PAGE
from amygdala.reporttext import visible
from reportable import ALERT, HOSTILE, NAMES, make_release

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -r requirements.txt")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next((found for name in BROWSERS if (found := shutil.which(name))), None)
ALONE = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
DESK = {"viewport": {"width": 1280, "height": 900}}
PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True, "device_scale_factor": 2}
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=f"no Chromium here (looked for {', '.join(BROWSERS)})")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("report")
    report.make_report(*make_release(), made)
    return made


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=ALONE)
        yield opened
        opened.close()


class Opened:
    """The report in a page of its own, with everything that it did: messages, errors, requests, dialogs."""

    def __init__(self, browser: Any, path: Path, **options: Any) -> None:
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.troubles: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.troubles.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.troubles.append(f"error: {error}"))
        self.page.on("dialog", lambda dialog: (self.troubles.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.url = path.resolve().as_uri()
        self.page.goto(self.url)

    def check(self) -> None:
        """Nothing went wrong and nothing but the file itself was asked for (data: is in the file)."""
        assert self.troubles == []
        assert [url for url in self.requests if not url.startswith("data:")] == [self.url]

    def column(self, number: int) -> list[str]:
        return [text.strip() for text in self.page.locator(f"#table tbody tr > :nth-child({number})").all_inner_texts()]


@pytest.fixture(params=[DESK, PHONE], ids=["desk", "phone"])
def opened(request: pytest.FixtureRequest, browser: Any, folder: Path) -> Iterator[Opened]:
    made = Opened(browser, folder / PAGE, **request.param)
    yield made
    made.check()
    made.context.close()


def boxes(page: Any, selector: str) -> list[dict[str, float]]:
    return [box for one in page.locator(selector).all() if (box := one.bounding_box())]


def test_every_figure_is_seen(opened: Opened) -> None:
    found = boxes(opened.page, "figure svg")
    assert len(found) == len(FIGURES)
    assert all(box["width"] > 250 and box["height"] > 60 for box in found)
    images = opened.page.evaluate(
        "Promise.all([...document.querySelectorAll('svg image')].map(i => { const o = new Image(); o.src = i.href.baseVal;"
        " return o.decode().then(() => o.naturalWidth) }))"
    )
    assert images and all(width > 0 for width in images)


def test_the_page_itself_never_scrolls_sideways(opened: Opened) -> None:
    for details in opened.page.locator("details").all():
        details.evaluate("one => { one.open = true; one.hidden = false }")
    wide, seen = opened.page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert wide == seen
    boxes = [box.evaluate("one => getComputedStyle(one).overflowX") for box in opened.page.locator(".wide").all()]
    assert len(boxes) > len(FIGURES) and set(boxes) == {"auto"}


def test_hostile_names_and_texts_are_text(opened: Opened) -> None:
    names = {name.replace("\n", "") for name in opened.column(1)}
    assert names == {visible(name) for name in NAMES}
    assert ALERT in opened.page.title() and ALERT in opened.page.locator("h1").inner_text()
    tokens = opened.page.locator(".tokens").first.text_content()
    assert tokens.startswith(visible(HOSTILE, kept="\n\t"))
    assert opened.page.locator("main script, main img, main b b").count() == 0
    assert opened.page.evaluate("document.querySelectorAll('script').length") == 1


@pytest.mark.parametrize("key", [None, "Enter", "Space"], ids=["click", "enter", "space"])
def test_the_table_sorts(opened: Opened, key: str | None) -> None:
    column = 3
    head = opened.page.locator(f"#table thead th:nth-child({column})")
    button = head.locator("button")

    def press() -> list[float]:
        if key is None:
            button.click()
        else:
            button.focus()
            opened.page.keyboard.press(key)
        return [float(text.split()[0]) for text in opened.column(column)]

    down, up = press(), head.get_attribute("aria-sort")
    assert down == sorted(down, reverse=True) and up == "descending" and len(set(down)) > 2
    assert press() == down[::-1] and head.get_attribute("aria-sort") == "ascending"
    assert opened.page.locator("#table [aria-sort]").count() == 1
    assert len(opened.column(1)) == len(NAMES)


def test_what_was_not_measured_comes_last_either_way(browser: Any, tmp_path: Path) -> None:
    readout, quality, tokens, heads = make_release()
    for figures in quality["emotions"]["calm"]["layers"].values():
        figures["held_out"] |= {"auc": None, "interval": None}
    report.make_report(readout, quality, tokens, heads, tmp_path)
    opened = Opened(browser, tmp_path / PAGE)
    for _ in range(2):
        opened.page.locator("#table thead th:nth-child(3) button").click()
        assert opened.column(1)[-1] == "calm"
    opened.check()


def test_finding_a_line(opened: Opened) -> None:
    opened.page.locator("#find").fill("CHANCE")
    seen = [row for row in opened.page.locator("#table tbody tr").all() if row.is_visible()]
    assert 0 < len(seen) < len(NAMES) and all("chance" in row.inner_text() for row in seen)
    assert opened.page.locator("#found").inner_text() == f"{len(seen)} of {len(NAMES)}"


def test_choosing_an_emotion_and_asking_a_token(opened: Opened) -> None:
    page = opened.page
    shown = page.locator(".example:visible")
    assert shown.count() == 1
    first = shown.get_attribute("id")
    page.locator("#after").click()
    assert shown.count() == 1 and shown.get_attribute("id") != first
    page.locator("#before").click()
    page.locator("#before").click()
    last = page.locator("#choose option").last.get_attribute("value")
    assert shown.get_attribute("id") == last == page.locator("#choose").input_value()
    shown.locator(".tokens i.n5").first.click()
    assert page.locator("#told").inner_text() == "“low” z = −7.5"
    shown.locator(".tokens i.x").first.click()
    assert page.locator("#told").inner_text() == "“First” does not count"


def test_a_name_in_the_table_leads_to_its_texts(opened: Opened) -> None:
    link = opened.page.locator("#table tbody tr:last-child th a")
    name = link.inner_text()
    link.click()
    opened.page.wait_for_function("location.hash.startsWith('#text-')")
    assert opened.page.locator(".example:visible summary bdi").inner_text() == name


def test_without_javascript_everything_can_be_read(browser: Any, folder: Path) -> None:
    opened = Opened(browser, folder / PAGE, java_script_enabled=False, **PHONE)
    assert opened.page.locator(".example summary").count() == len(NAMES)
    assert all(summary.is_visible() for summary in opened.page.locator(".example > summary").all())
    assert len(boxes(opened.page, "figure svg")) == len(FIGURES)
    assert not any(tool.is_visible() for tool in opened.page.locator(".js").all())
    opened.check()


def test_figures_are_drawn_in_the_readers_colours(browser: Any, folder: Path) -> None:
    found = []
    for scheme in ("light", "dark"):
        opened = Opened(browser, folder / PAGE, color_scheme=scheme)
        ink = "getComputedStyle(document.querySelector('#figure-layers svg text')).fill"
        found.append(opened.page.evaluate(f"[getComputedStyle(document.body).backgroundColor, {ink}]"))
        opened.check()
    (light, dark_ink), (dark, light_ink) = found
    assert light != dark and dark_ink != light_ink
