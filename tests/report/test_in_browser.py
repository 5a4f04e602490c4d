"""The page in a real browser: what it shows, on a desktop, a phone and paper, light and dark."""

import re
from itertools import pairwise
from pathlib import Path

import pytest
from browser import CHROMIUM, DRIVER, Browser
from PIL import Image
from workdirs import EVIL, study, training_run

from ift_jax.report.page import write_report
from ift_jax.report.palette import ROLES, contrast

if not (CHROMIUM and DRIVER):
    pytest.skip(
        "needs a browser: apt-get install chromium chromium-driver", allow_module_level=True
    )


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    runs = [training_run(folder / "low-rate"), training_run(folder / "high-rate", tuned=0.7)]
    return {
        "runs": write_report(runs, folder / "runs.html").page,
        "study": write_report([study(folder / "study")], folder / "study.html").page,
    }


ALL = pytest.mark.parametrize("name", ["runs", "study"])

HEADINGS = {
    "runs": ["What was run", "Scores", "Training", "By template and class", "Samples",
             "What is trained", "Data", "Costs", "Settings that differ"],
    "study": ["What the numbers say", "What was run", "Scores", "What was forgotten",
              "How many examples", "Between base and tuned", "Training", "Samples",
              "What is trained", "Data", "Costs", "Settings that differ"],
}  # fmt: skip


@ALL
def test_the_page_asks_for_nothing_and_complains_of_nothing(browser, pages, name):
    browser.open(pages[name])
    assert browser.requests() == [pages[name].as_uri()]
    assert browser.complaints() == []
    assert (
        browser.driver.title
        == f"{'low-rate, high-rate' if name == 'runs' else 'study'} – ift_jax report"
    )


@ALL
def test_sections_and_tables_can_be_read(browser, pages, name):
    browser.open(pages[name])
    assert (
        browser.script("return [...document.querySelectorAll('h2')].map(e => e.innerText)")
        == (HEADINGS[name])
    )
    text = browser.script("return document.body.innerText")
    assert EVIL in text  # shown as it is, never run
    assert "Left out" not in text
    row = browser.script(
        "return [...document.querySelectorAll('tr')].map(e => e.innerText.split(/\\s*\\t\\s*/))"
    )
    if name == "runs":
        assert ["tuned model, 0 shots, high-rate", "70 [64–76]", "70 [64–76]", "119"] in row
    else:
        assert ["after probes", "20 [15–25]", "70 [65–75]", "80 [75–85]", "60 [55–65]",
                "35 [30–40]"] in row  # fmt: skip


@ALL
def test_the_page_can_be_used_without_seeing_it(browser, pages, name):
    browser.open(pages[name])
    levels = browser.script(
        "return [...document.querySelectorAll('h1,h2,h3,h4')].map(e => +e.tagName[1])"
    )
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b <= a + 1 for a, b in pairwise(levels))
    count = "return document.querySelectorAll(arguments[0]).length"
    assert browser.script(count, "table") > 5
    assert browser.script(count, "table:not(:has(caption))") == 0
    assert browser.script(count, "th:not([scope])") == 0
    assert browser.script(count, "tbody tr:not(:has(th[scope=row]))") == 0
    assert browser.script(count, "svg") > 5
    assert browser.script(count, "svg") == browser.script(count, "[role=img][aria-label] > svg")
    ids = browser.script("return [...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))
    anchors = browser.script("return [...document.querySelectorAll('nav a')].map(e => e.hash)")
    assert {anchor[1:] for anchor in anchors} <= set(ids)


@ALL
@pytest.mark.parametrize("width", [360, 768, 1280])
def test_nothing_scrolls_sideways_but_tables_in_their_boxes(browser, pages, name, width):
    browser.open(pages[name], width=width, height=780)
    assert browser.script("return document.documentElement.scrollWidth") == width
    outside = browser.script(
        """return [...document.querySelectorAll('body *')].filter(e =>
               !e.closest('.box') && !e.closest('svg')
               && e.getBoundingClientRect().right > innerWidth + 1
           ).map(e => e.tagName + ' ' + e.innerText.slice(0, 40))"""
    )
    assert outside == []
    over = browser.script(
        """return [...document.querySelectorAll('th, td')].filter(
               e => e.scrollWidth > e.clientWidth).map(e => e.innerText.slice(0, 40))"""
    )
    assert over == []
    boxes = browser.script(
        "return [...document.querySelectorAll('.box')].map(e => [e.scrollWidth, e.clientWidth])"
    )
    assert width > 360 or any(wide > shown for wide, shown in boxes)
    smallest = browser.script(
        """return Math.min(...[...document.querySelectorAll('svg text')].map(
               e => e.getBoundingClientRect().height))"""
    )
    assert smallest >= 8  # px; letters of figures can be read on a phone too


def colours(browser, selector):
    """Text and ground of the first element that a selector finds, as #rrggbb."""
    pair = browser.script(
        """let e = document.querySelector(arguments[0]), ground = e;
           const seen = c => getComputedStyle(c).backgroundColor;
           while (seen(ground) == 'rgba(0, 0, 0, 0)') ground = ground.parentElement;
           const style = getComputedStyle(e);
           return [e.ownerSVGElement ? style.fill : style.color, seen(ground)];""",
        selector,
    )
    return ["#" + "".join(f"{int(n):02x}" for n in re.findall(r"\d+", c)[:3]) for c in pair]


def test_dark_is_dark_and_both_can_be_read(browser, pages):
    grounds = {}
    for dark in (False, True):
        browser.open(pages["runs"], dark=dark)
        for selector in ("body", "a", ".note", "thead th", "td", ".tokens mark", ".answers dt",
                         "figcaption", "svg text"):  # fmt: skip
            text, ground = colours(browser, selector)
            assert contrast(text, ground) >= 4.5, (selector, dark)
        grounds[dark] = colours(browser, "body")[1]
    assert grounds == {False: ROLES["paper"].light, True: ROLES["paper"].dark}


@ALL
def test_on_paper_everything_is_there_and_light(browser, pages, name, tmp_path):
    browser.open(pages[name], dark=True)
    browser.pdf(tmp_path / "page.pdf")
    text, num_pages = pdf_text(tmp_path / "page.pdf")
    assert 3 <= num_pages <= 16
    for heading in HEADINGS[name]:
        assert heading in text
    assert "needs no network" in text  # the end of the page
    browser.cdp("Emulation.setEmulatedMedia", media="print", features=[
        {"name": "prefers-color-scheme", "value": "dark"}
    ])  # fmt: skip
    try:
        assert colours(browser, "body") == [ROLES["ink"].light, ROLES["paper"].light]
        # A paper's width less its margins: no cell may stand beyond it.
        browser.cdp("Emulation.setDeviceMetricsOverride", width=688, height=970,
                    deviceScaleFactor=1, mobile=False)  # fmt: skip
        assert browser.script("return document.documentElement.scrollWidth") <= 688
        rules = browser.script("return getComputedStyle(document.querySelector('tr')).breakInside")
        assert rules == "avoid"
    finally:
        browser.cdp("Emulation.setEmulatedMedia", media="")


def pdf_text(file: Path) -> tuple[str, int]:
    import pypdfium2

    document = pypdfium2.PdfDocument(file)
    try:
        return "\n".join(page.get_textpage().get_text_range() for page in document), len(document)
    finally:
        document.close()


@ALL
@pytest.mark.parametrize("width", [390, 1280])
def test_a_screenshot_is_the_page_and_not_blank(browser, pages, tmp_path, name, width):
    browser.open(pages[name], width=width)
    browser.screenshot(tmp_path / "page.png")
    with Image.open(tmp_path / "page.png") as image:
        assert image.width == width
        assert image.height > 2000
        counts = image.convert("RGB").getcolors(1 << 24)
    assert len(counts) > 100
    # The paper is most of it; text, curves and cells are the rest.
    assert 0.02 < 1 - max(count for count, _ in counts) / (image.width * image.height) < 0.6
