"""The report of a run on images, in headless Chromium: nothing breaks, nothing leaves."""

import base64
import json
import os
import time

import pytest

from jem.cli import main

SECTIONS = [
    "answers", "classification", "ood", "samples", "completions", "corruption", "training",
    "glossary", "again",
]  # fmt: skip
A4_INNER_WIDTH = 711  # pixels, 96 an inch: 210 mm less two margins of 11 mm
SMALLEST_TEXT = """
const sizes = {};
for (const e of document.querySelectorAll('body *')) {
  const written = [...e.childNodes].some(n => n.nodeType === Node.TEXT_NODE && n.data.trim());
  if (!written || e.closest('style, defs')) continue;
  const drawn = e.closest('svg') && e.getScreenCTM();
  const scale = drawn ? Math.hypot(drawn.a, drawn.b) : 1;
  sizes[e.textContent.trim()] = scale * parseFloat(getComputedStyle(e).fontSize);
}
return sizes
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def page(browser, tmp_path_factory):
    """The report that `jem train` ends in, after a short training with a control."""
    folder = tmp_path_factory.mktemp("browser") / "run"
    words = ["train", "--out", str(folder), "--control", "--quiet", "--device", "cpu"]
    assert main([*words, "--epochs", "3", "--sample-steps", "5"]) == 0
    return folder / "report.html"


def show(browser, page, width, scheme="light"):
    """Open the page at a width in a colour scheme."""
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600},
    )
    preferred = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": preferred})
    browser.get(page.as_uri())


def test_no_error_and_no_request(browser, page):
    browser.get_log("performance")
    show(browser, page, 1200)
    assert browser.get_log("browser") == []
    messages = [
        json.loads(entry["message"])["message"] for entry in browser.get_log("performance")
    ]
    sent = [
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    ]
    assert page.as_uri() in sent
    assert {url.split(":")[0] for url in sent} <= {"file", "data"}
    assert [url for url in sent if url.startswith("file")] == [page.as_uri()]


def test_every_section_is_seen_and_every_picture_drawn(browser, page):
    show(browser, page, 1200)
    visible = "return [...document.querySelectorAll('section')].filter(s => s.offsetHeight > 40)"
    assert browser.execute_script(f"{visible}.map(s => s.id)") == SECTIONS
    drawn = "return [...document.images].every(i => i.complete && i.naturalWidth > 0)"
    assert browser.execute_script(drawn)
    svg = "return [...document.querySelectorAll('svg')].map(s => s.getBoundingClientRect().height)"
    assert min(browser.execute_script(svg)) > 100


@pytest.mark.parametrize("width", [320, 390, 1200])
def test_no_text_is_too_small_to_read(browser, page, width):
    show(browser, page, width)
    sizes = browser.execute_script(SMALLEST_TEXT)
    assert len(sizes) > 100
    assert {text: size for text, size in sizes.items() if size < 11.9} == {}


@pytest.mark.parametrize("width", [320, 360, 390, 768, 1200])
def test_nothing_is_wider_than_the_screen(browser, page, width):
    show(browser, page, width)
    inner, wide = browser.execute_script(
        "return [document.documentElement.clientWidth, document.documentElement.scrollWidth]"
    )
    assert wide <= inner


def test_on_paper_it_is_a_few_pages_and_nothing_is_cut_off(browser, page):
    show(browser, page, 1200)
    printed = browser.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True})
    pages = base64.b64decode(printed["data"]).count(b"/Type /Page\n")
    assert 2 <= pages <= 8
    show(browser, page, A4_INNER_WIDTH)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    ends = browser.execute_script(
        "return [...document.querySelectorAll('table, svg, img')].map(e => ["
        "e.getBoundingClientRect().right,"
        "getComputedStyle(e.closest('.scroll, .wide, .narrow') ?? document.body).overflowX])"
    )
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert ends
    assert {cut for _, cut in ends} == {"visible"}
    assert max(right for right, _ in ends) <= A4_INNER_WIDTH


def contrast(first, second):
    """Contrast ratio of two colours, by the Web Content Accessibility Guidelines 2.1."""

    def luminance(color):
        channels = [float(c) / 255 for c in color.strip("rgba()").split(",")[:3]]
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground_in_both_schemes(browser, page, scheme):
    show(browser, page, 1200, scheme)
    ground = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert contrast(ground, "rgb(0, 0, 0)" if scheme == "light" else "rgb(255, 255, 255)") > 15
    for selector in ("body", "figcaption", "a", "td small", ".answer", "svg text"):
        key = "fill" if selector == "svg text" else "color"
        color = browser.execute_script(
            f"return getComputedStyle(document.querySelector('{selector}')).{key}"
        )
        assert contrast(color, ground) >= 4.5, selector


def test_keyboard_reaches_links_details_and_tables(browser, page):
    show(browser, page, 1200)
    script = (
        "return [...document.querySelectorAll('a, summary, [tabindex=\"0\"]')]"
        ".filter(e => {e.focus(); return document.activeElement === e}).map(e => e.tagName)"
    )
    for _ in range(50):  # a section that is not laid out yet cannot be focused
        reached = set(browser.execute_script(script))
        if "PRE" in reached:
            break
        time.sleep(0.2)
    assert {"A", "SUMMARY", "DIV", "PRE"} <= reached


def test_screenshots_can_be_kept_to_look_at(browser, page, tmp_path):
    folder = os.environ.get("JEM_SCREENSHOTS", str(tmp_path))
    for name, width, scheme in (
        ("desk", 1200, "light"),
        ("phone", 390, "light"),
        ("dark", 1200, "dark"),
    ):
        show(browser, page, width, scheme)
        file = os.path.join(folder, f"report_{name}.png")
        assert browser.save_screenshot(file)
        assert os.path.getsize(file) > 10_000
