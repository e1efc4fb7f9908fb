"""The page of a report on paper, in headless Chromium."""

import base64

import pytest

from jem.cli import main

pytestmark = pytest.mark.slow

A4_INNER_WIDTH = 711  # of 96 an inch: 210 mm less two margins of 11 mm


@pytest.fixture(scope="module")
def page(browser, tmp_path_factory):
    """The browser at the report of a short run on paper."""
    folder = tmp_path_factory.mktemp("report") / "run"
    words = ["train", "--out", str(folder), "--control", "--quiet", "--device", "cpu"]
    assert main([*words, "--epochs", "2", "--sample-steps", "5"]) == 0
    browser.get(f"file://{folder / 'report.html'}")
    return browser


def test_a_printed_report_is_a_few_pages_long(page):
    printed = page.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True})
    pages = base64.b64decode(printed["data"]).count(b"/Type /Page\n")
    assert 2 <= pages <= 8


def test_no_table_or_figure_is_cut_off_on_paper(page):
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    page.set_window_size(A4_INNER_WIDTH, 1000)
    ends = page.execute_script(
        "return [...document.querySelectorAll('table, svg, img')]"
        ".map(e => [e.getBoundingClientRect().right,"
        " getComputedStyle(e.closest('.scroll, .wide, .narrow') ?? document.body).overflowX])"
    )
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert ends
    assert all(right <= A4_INNER_WIDTH and cut == "visible" for right, cut in ends)
