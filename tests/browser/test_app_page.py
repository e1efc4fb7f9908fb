"""The page of `jem app`, in headless Chromium: a stroke is judged, and nothing leaves."""

import json
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from jem.cli import main

pytestmark = pytest.mark.slow


def waited_for(condition, seconds=60):
    """What the condition gives once it gives something."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)
    return found


@pytest.fixture(scope="module")
def address(browser, tmp_path_factory):
    """Where `jem app` shows a run and its control."""
    folder = tmp_path_factory.mktemp("app") / "run"
    words = ["train", "--out", str(folder), "--control", "--quiet", "--no-report"]
    assert main([*words, "--device", "cpu", "--epochs", "2", "--sample-steps", "5"]) == 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    runs = str(folder), str(folder / "control")
    words = [sys.executable, "-m", "jem", "app", *runs, "--port", port, "--no-browser"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as server:
        address = waited_for(server.stdout.readline).strip()
        yield waited_for(lambda: answers(address) and address)
        server.terminate()


def answers(address):
    try:
        return urllib.request.urlopen(address).status == 200
    except OSError:
        return False


def verdicts(browser):
    """What the models say, one after the other."""
    return [v.text for v in browser.find_elements("css selector", "[id^=verdict]")]


def pictures(browser):
    """The pictures that are seen now, and not those of other tabs."""
    return [i for i in browser.find_elements("css selector", "img") if i.is_displayed()]


def press(browser, text):
    """Press the button that is seen with a text."""
    xpath = f"//button[normalize-space()={text!r}]"

    def shown():
        return [b for b in browser.find_elements("xpath", xpath) if b.is_displayed()]

    waited_for(shown)[-1].click()


def test_a_stroke_is_judged_by_both_models_and_nothing_leaves(browser, address):
    chains = pytest.importorskip("selenium.webdriver.common.action_chains")
    browser.get_log("performance")
    browser.set_window_size(1200, 900)
    browser.get(address)
    canvas = waited_for(lambda: browser.find_elements("css selector", "#pad canvas"))[0]
    before = verdicts(browser)
    assert len(before) == 2
    hand = chains.ActionChains(browser, duration=20)
    hand.move_to_element_with_offset(canvas, 0, -100).click_and_hold()
    hand.move_to_element_with_offset(canvas, 0, 100).release().perform()
    waited_for(lambda: verdicts(browser) != before)
    assert all(v.startswith(("Accepted as ", "Rejected: ")) for v in verdicts(browser))
    messages = [
        json.loads(entry["message"])["message"] for entry in browser.get_log("performance")
    ]
    sent = [
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    ]
    assert any(url.startswith(address) for url in sent)
    assert [url for url in sent if not url.startswith((address, "data:", "blob:"))] == []


def test_a_test_input_is_completed_changed_and_new_ones_are_drawn(browser, address):
    browser.get(address)
    press(browser, "or take a test input")
    waited_for(lambda: all("inputs like" in v for v in verdicts(browser)))
    for tab, button, count in (("Complete", "Complete", 6), ("Draw new ones", "Draw", 9)):
        press(browser, tab)
        assert len(pictures(browser)) < count
        press(browser, button)
        waited_for(lambda: len(pictures(browser)) == count)  # noqa: B023
    press(browser, "Change")
    assert pictures(browser) == []
    press(browser, "Change")
    waited_for(lambda: len(pictures(browser)) == 2)
    seen = browser.find_element("tag name", "body").text
    assert "Distance: " in seen or "the nearest miss" in seen


def test_what_is_no_image_gets_a_sentence(browser, address, tmp_path):
    (tmp_path / "no.png").write_bytes(b"no image")
    browser.get(address)
    field = waited_for(lambda: browser.find_elements("css selector", "input[type=file]"))[0]
    field.send_keys(str(tmp_path / "no.png"))
    body = browser.find_element("tag name", "body")
    assert "got a damaged one" in waited_for(lambda: "must be an image" in body.text and body.text)
