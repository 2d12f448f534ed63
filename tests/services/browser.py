"""A headless browser for the tests of pages: Debian's chromium and chromedriver."""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.thresholds import important_tokens

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1400,1000",
)


@contextmanager
def browser(home: Path) -> Iterator[Any]:
    """Start a browser whose profile and downloads lie in `home`; skip the test where there is none."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium: pip install 'sft-go[test]'")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("needs a browser: apt-get install chromium chromium-driver")
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={home / 'profile'}"):
        options.add_argument(flag)
    options.add_experimental_option("prefs", {"download.default_directory": str(home)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    page = webdriver.Chrome(options=options, service=Service(driver))
    try:
        yield page
    finally:
        page.quit()


def until(condition: Callable[[], Any], seconds: float = 20.0) -> Any:
    """Wait until a condition holds and return its value."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.05)
    raise AssertionError(f"did not happen within {seconds} s")


def complaints(page: Any) -> list[str]:
    """Return what the browser's console says of errors: scripts that failed, and what the page's policy forbids."""
    return [entry["message"] for entry in page.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]


def one(page: Any, selector: str) -> Any:
    return page.find_element("css selector", selector)


def all_of(page: Any, selector: str) -> list:
    return page.find_elements("css selector", selector)


def choose(page: Any, *groupers: str) -> None:
    for box in all_of(page, "[name=grouper]"):
        if box.is_selected() != (box.get_attribute("value") in groupers):
            box.click()


def score(page: Any, text: str, *groupers: str) -> None:
    """Type a text, choose groupers, press the button, wait for the panels."""
    choose(page, *groupers)
    page.execute_script("document.querySelector('#text').value = arguments[0]", text)
    one(page, "#score").click()
    shown = "return [sftGo.view.data?.documents[0].text, ...sftGo.view.panels.map((panel) => panel.name)]"
    until(lambda: page.execute_script(shown) == [text, *groupers] or one(page, "#prompt").is_displayed())
    until(lambda: page.execute_script(shown)[1:] == list(groupers))


def view(page: Any) -> dict:
    return page.execute_script("return sftGo.view.data")


def set_eta(page: Any, value: str) -> None:
    page.execute_script(
        "const range = document.querySelector('#eta'); range.value = arguments[0];"
        "range.dispatchEvent(new Event('input'));",
        value,
    )


def counts(page: Any) -> dict[str, int]:
    """Return how many tokens each panel says are important."""
    return page.execute_script(
        "return Object.fromEntries([...document.querySelectorAll('.panel')].map("
        "(panel) => [panel.dataset.grouper, Number(panel.querySelector('.stats').dataset.count)]))"
    )


def expected(page: Any, eta: float, ties: str = "threshold") -> dict[str, int]:
    """Return the same by the function that the trainer uses."""
    data = view(page)
    tokens = data["documents"][0]["tokens"]
    return {
        name: int(important_tokens(np.array(scores), np.array(tokens["supervised"]), eta, ties).important.sum())
        for name, scores in data["documents"][0]["scores"].items()
    }


def requests_made(page: Any) -> list[str]:
    messages = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    urls = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    return [
        url for url in urls if not url.startswith(("chrome:", "chrome-untrusted:", "data:"))
    ]  # the browser's own first tab
