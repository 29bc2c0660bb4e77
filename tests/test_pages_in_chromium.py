"""The report in a real browser: it asks nobody for anything, its slider fades, it fits a phone, it prints. Skipped without Chromium."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.pages.report import audit_page
from pipeline.pages.run_report import write_run_report
from tests.pacs import browser as browsers
from tests.run_reports import run_report
from tests.test_report import _record

PHONE, DESKTOP = 390, 1280
PAPER = 673
"""Pixels between the margins of an A4 page at 96 dots an inch."""
GRAY, COLOURED = 1, 50
"""Largest difference between a pixel's channels, of 255: of a gray JPEG at most its rounding, of the heatmap's magenta far more."""
FRAMES, FRAME_S = 40, 0.1
"""A screenshot is taken until two are the same."""
COMPLAINTS = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")

pytestmark = pytest.mark.chromium


class Browser(browsers.Browser):
    """A browser that shows reports."""

    def open(self, page: Path, width: int, *, script: bool = True, media: str = "screen") -> None:
        """Shows `page` anew at a width in CSS pixels, and waits until it is there."""
        self.call("Emulation.setScriptExecutionDisabled", value=not script)
        self.call("Emulation.setEmulatedMedia", media=media)
        self.show(page.as_uri(), width, mobile=width == PHONE)

    def seen(self, element: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """(rows, columns, 3) of an element as it is on the screen."""
        find = f"const e = document.querySelector('{element}'); e.scrollIntoView({{block: 'center'}})"
        box = f"(() => {{ {find}; return e.getBoundingClientRect().toJSON(); }})()"
        found = self.value(box)
        clip = {name: found[name] for name in ("width", "height")} | {"scale": 1}
        clip |= {"x": found["x"] + self.value("scrollX"), "y": found["y"] + self.value("scrollY")}
        before = np.empty((0, 0, 3), np.uint8)
        for _ in range(FRAMES):  # what was scrolled to is painted a few frames later
            taken = self.screenshot(clip=clip, captureBeyondViewport=True)
            if np.array_equal(taken, before):
                break
            before = taken
            time.sleep(FRAME_S)
        return before


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    started = Browser(tmp_path_factory.mktemp("profile"))
    yield started
    started.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Reports of several kinds, and an audit."""
    kinds: dict[str, dict[str, Any]] = {
        "two": {},
        "many": {"classes": tuple(f"class of a long name number {number}" for number in range(14)), "cases": 200},
        "several": {"classes": ("Edema", "Effusion", "Mass"), "several": True},
        "folds": {"folds": 5},
        "unbroken": {"text": "x" * 300},
        "tiny": {"cases": 1, "pictures": 0},
    }
    folder = tmp_path_factory.mktemp("pages")
    for name, kind in kinds.items():
        write_run_report(folder / name, run_report(**kind))
    (folder / "audit.html").write_text(audit_page(_record()))
    return {name: folder / name / "report.html" for name in kinds} | {"audit": folder / "audit.html"}


KINDS = ("two", "many", "several", "folds", "unbroken", "tiny", "audit")


@pytest.mark.parametrize("name", KINDS)
def test_it_asks_for_nothing_and_complains_of_nothing(browser: Browser, pages: dict[str, Path], name: str):
    browser.open(pages[name], DESKTOP)
    asked = [
        event["params"]["request"]["url"] for event in browser.events if event["method"] == "Network.requestWillBeSent"
    ]
    assert [url for url in asked if not url.startswith("data:")] == [pages[name].as_uri()]
    assert not [event for event in browser.events if event["method"] in COMPLAINTS]
    assert browser.value("[...document.images].every(one => one.complete && one.naturalWidth > 0)")


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
@pytest.mark.parametrize("name", KINDS)
def test_no_page_is_wider_than_its_screen(browser: Browser, pages: dict[str, Path], name: str, width: int):
    browser.open(pages[name], width)
    assert browser.value("innerWidth") == width
    assert browser.value("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("name", KINDS)
def test_nothing_is_cut_off_in_print(browser: Browser, pages: dict[str, Path], name: str):
    browser.open(pages[name], PAPER, media="print")
    assert browser.value("document.documentElement.scrollWidth") <= PAPER
    printed = base64.b64decode(browser.call("Page.printToPDF", printBackground=True, preferCSSPageSize=True)["data"])
    assert printed.startswith(b"%PDF")
    assert printed.rstrip().endswith(b"%%EOF")
    assert printed.count(b"/Type /Page\n") + printed.count(b"/Type /Page ") >= 1


def _colourfulness(picture: np.ndarray[Any, np.dtype[np.uint8]]) -> int:
    return int((picture.max(axis=2) - picture.min(axis=2)).max())


def test_the_slider_fades_the_heatmaps_and_only_them(browser: Browser, pages: dict[str, Path]):
    browser.open(pages["two"], DESKTOP)
    opacities = "[...new Set([...document.querySelectorAll('.heat')].map(one => getComputedStyle(one).opacity))]"
    full = browser.seen(".gallery .layers")
    assert browser.value(opacities) == ["1"]
    browser.value("fade.value = 40; fade.dispatchEvent(new Event('input'))")
    assert browser.value(opacities) == ["0.4"]
    assert browser.value("faded.textContent") == "40 %"
    browser.value("fade.focus()")
    browser.press("Home", 36)  # by the keyboard alone
    assert browser.value(opacities) == ["0"]
    bare = browser.seen(".gallery .layers")
    assert _colourfulness(bare) <= GRAY
    assert _colourfulness(full) > COLOURED
    browser.press("End", 35)
    assert browser.value(opacities) == ["1"]
    assert (browser.seen(".gallery .layers") == full).all()


def test_without_script_it_is_whole_and_the_heatmaps_can_be_put_away(browser: Browser, pages: dict[str, Path]):
    browser.open(pages["two"], DESKTOP, script=False)
    coloured = browser.seen(".gallery .layers")
    box = browser.seen(".fader label")
    assert box.size
    assert browser.value("fade.closest('label').hidden")
    browser.value("bare.focus()")
    browser.press(" ", 32)
    bare = browser.seen(".gallery .layers")
    assert _colourfulness(coloured) > COLOURED
    assert _colourfulness(bare) <= GRAY
    browser.open(pages["two"], DESKTOP)


def test_a_script_of_anybody_else_does_not_run(browser: Browser, pages: dict[str, Path], tmp_path: Path):
    text = pages["two"].read_text().replace("</main>", "<script>document.title = 'run'</script></main>")
    (tmp_path / "changed.html").write_text(text)
    browser.open(tmp_path / "changed.html", DESKTOP)
    assert browser.value("document.title") != "run"
    assert [event for event in browser.events if event["method"] == "Log.entryAdded"]


CONTRAST = """
(() => {
  const light = rgb => rgb.map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const numbers = text => text.match(/[\\d.]+/g).map(Number);
  const below = element => {
    const layers = [];
    for (let at = element; at; at = at.parentElement) {
      const [r, g, b, a = 1] = numbers(getComputedStyle(at).backgroundColor);
      if (a > 0) { layers.unshift([r, g, b, a]); }
    }
    return layers.reduce((under, [r, g, b, a]) => [r, g, b].map((v, i) => v * a + under[i] * (1 - a)), [255, 255, 255]);
  };
  const faint = [];
  for (const element of document.querySelectorAll('main *')) {
    const own = [...element.childNodes].some(one => one.nodeType === 3 && one.textContent.trim());
    if (!own || element.closest('script') || !element.checkVisibility()) { continue; }
    const style = getComputedStyle(element), drawn = element.closest('svg');
    const ink = numbers(drawn ? style.fill : style.color).slice(0, 3);
    const pair = [light(ink), light(below(element))].sort((a, b) => b - a);
    const ratio = (pair[0] + 0.05) / (pair[1] + 0.05);
    if (ratio < 4.5) { faint.push([element.className.baseVal ?? element.className, element.textContent.slice(0, 30), ratio]); }
  }
  return faint;
})()
"""
"""WCAG 2.2, 1.4.3: the contrast of text with what lies under it."""


@pytest.mark.parametrize("name", ["two", "several"])
def test_all_text_can_be_read(browser: Browser, pages: dict[str, Path], name: str):
    browser.open(pages[name], DESKTOP)
    assert browser.value(CONTRAST) == []
    browser.value(
        "document.querySelector('main').insertAdjacentHTML('beforeend', '<p style=\"color: #999\">faint</p>')"
    )
    assert [one[1] for one in browser.value(CONTRAST)] == ["faint"]
