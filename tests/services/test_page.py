"""The page in a real browser: type, score, move eta, switch groupers, export; by keyboard; with hostile texts."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.services.browser import (
    all_of,
    browser,
    choose,
    complaints,
    counts,
    expected,
    one,
    requests_made,
    score,
    set_eta,
    until,
    view,
)
from tests.services.running import Server

pytestmark = pytest.mark.browser

HOSTILE = (
    "<script>window.hacked = 1</script><!-- <b onmouseover=alert(1)> ]]> </script> 😀👩‍👩‍👧 é \u2028 צב <|bos|> & &lt;"
)


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    home = tmp_path_factory.mktemp("browser")
    with browser(home) as page:
        page.home = home
        yield page


@pytest.fixture
def page(window: Any, server: Server) -> Any:
    """The page, freshly opened, with its groupers loaded."""
    requests_made(window)  # forget those of the tests before, and of the browser's first tab
    window.get(server.url)
    until(lambda: all_of(window, ".panel"))  # of the example that is scored when the page opens
    one(window, "[name=mode][value=text]").find_element("xpath", "..").click()
    one(window, "#text").clear()
    yield window
    assert complaints(window) == []


def test_an_example_is_scored_when_the_page_opens(window, server):
    window.get(server.url)
    until(lambda: all_of(window, ".panel"))
    assert one(window, "#prompt").get_attribute("value").startswith("How does the heart")
    assert "four chambers" in one(window, ".tokens").text
    assert counts(window) == expected(window, 0.7)
    assert window.execute_script("return window.scrollY") == 0
    assert complaints(window) == []


def test_type_score_and_move_eta(page, server):
    one(page, "#text").send_keys("The heart pumps blood. The lungs take up oxygen, and the blood carries it on.")
    choose(page, "tfidf", "frequency")
    one(page, "#score").click()
    until(lambda: len(all_of(page, ".panel")) == 2)
    assert counts(page) == expected(page, 0.7)
    urls = requests_made(page)
    assert {url.split("?")[0] for url in urls} <= {
        *(f"{server.url}{path}" for path in ("/", "/v1/groupers", "/v1/score"))
    }, "the page loads nothing from elsewhere"  # fmt: skip
    for eta in ("0", "0.5", "0.9", "0.99"):
        set_eta(page, eta)
        until(lambda eta=eta: counts(page) == expected(page, float(eta)))
        assert len(all_of(page, "[data-grouper=tfidf] .tokens .important")) == counts(page)["tfidf"]
    assert requests_made(page) == [], "moving eta asks the server nothing"
    assert one(page, "#eta-number").get_attribute("value") == "0.99"


def test_ties_and_shades(page):
    score(page, "one two three four five six seven eight nine ten", "tfidf")
    set_eta(page, "0.5")
    page.execute_script(
        "const s = document.querySelector('#ties'); s.value = 'rank'; s.dispatchEvent(new Event('change'))"
    )
    until(lambda: counts(page) == expected(page, 0.5, "rank"))
    shades = "return [...document.querySelectorAll('.panel .token')].map(e => e.style.getPropertyValue('--shade'))"
    by_rank = page.execute_script(shades)
    page.execute_script(
        "const s = document.querySelector('#shade'); s.value = 'value'; s.dispatchEvent(new Event('change'))"
    )
    by_value = page.execute_script(shades)
    assert by_rank != by_value
    assert all(0 <= float(shade) <= 1 for shade in by_rank + by_value if shade)


def test_switch_groupers(page):
    for groupers in (("tfidf",), ("llmlingua2", "rho1"), ("tfidf", "random", "rho1_excess")):
        score(page, "Switch from one to the other.", *groupers)
    score(page, "A reference loss has no groups.", "rho1")
    assert "no groups" in one(page, ".stats").text
    assert not all_of(page, ".tokens .important")


def test_a_prompt_is_grey_and_can_be_hidden(page):
    one(page, "[value=messages]").click()
    one(page, "#prompt").send_keys("How does it move?")
    score(page, "By its legs.", "tfidf")
    assert len(all_of(page, ".tokens .prompt")) > 3
    assert not all_of(page, ".tokens .prompt.important")
    assert one(page, ".tokens .prompt:not(.special)").is_displayed()
    one(page, "#prompts").click()
    assert not one(page, ".tokens .prompt:not(.special)").is_displayed()


def test_hover_and_keyboard_show_exact_values(page):
    from selenium.webdriver import ActionChains, Keys

    score(page, "The heart pumps blood.", "tfidf", "random")
    token = all_of(page, ".panel:first-child .token")[2]
    ActionChains(page).move_to_element(token).perform()
    tip = until(lambda: one(page, ".tooltip") if one(page, ".tooltip").is_displayed() else None)
    exact = view(page)["documents"][0]["scores"]["tfidf"][2]
    assert str(float(f"{exact:.7g}")) in tip.text
    name = view(page)["documents"][0]["tokens"]["text"][2].replace(" ", "·")
    for words in ("tfidf", "random", "token 2", name):
        assert words in tip.text
    assert len(all_of(page, ".pointed")) == 2, "the same token is pointed at in both panels"
    body = one(page, ".panel:last-child .tokens")
    body.send_keys(Keys.HOME, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert "token 3" in one(page, ".tooltip").text
    assert "score" in one(page, ".spoken").get_attribute("textContent")
    body.send_keys(Keys.ESCAPE)
    assert not one(page, ".tooltip").is_displayed()


def test_everything_works_by_keyboard(page):
    from selenium.webdriver import ActionChains, Keys

    choose(page, "tfidf")
    one(page, "#text").send_keys("Only keys are pressed here, no button.", Keys.CONTROL + Keys.ENTER)
    until(lambda: all_of(page, ".panel"))
    before = counts(page)
    one(page, "#eta").send_keys(Keys.ARROW_LEFT * 30)
    until(lambda: counts(page) != before)
    reached = set()
    one(page, "#text").click()
    for _ in range(25):
        ActionChains(page).send_keys(Keys.TAB).perform()
        active = page.switch_to.active_element
        reached.add(active.get_attribute("id") or active.get_attribute("class") or active.get_attribute("name"))
    assert {"score", "eta", "eta-number", "ties", "shade", "export-html", "export-json", "tokens", "grouper"} <= reached


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_light_and_dark_are_legible(page, theme):
    page.execute_script("document.querySelector('#theme').value = arguments[0];"
                        "document.querySelector('#theme').dispatchEvent(new Event('change'))", theme)  # fmt: skip
    score(page, "The heart pumps blood through the body all day long.", "tfidf")
    contrasts = page.execute_script(
        """
        const context = Object.assign(document.createElement("canvas"), { width: 1, height: 1 })
          .getContext("2d", { willReadFrequently: true });
        const light = (...colours) => {  // painted over one another, then relative luminance (WCAG 2)
          for (const colour of colours) { context.fillStyle = colour; context.fillRect(0, 0, 1, 1); }
          const [r, g, b] = [...context.getImageData(0, 0, 1, 1).data].slice(0, 3).map((v) => v / 255)
            .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
          return 0.2126 * r + 0.7152 * g + 0.0722 * b;
        };
        const card = getComputedStyle(document.querySelector(".panel")).backgroundColor;
        return [...document.querySelectorAll(".tokens .token, .legend, .stats, .kind")].map((element) => {
          const { color, backgroundColor } = getComputedStyle(element);
          const [a, b] = [light(card, backgroundColor, color), light(card, backgroundColor)];
          return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        });
        """
    )
    assert min(contrasts) >= 4.5, "WCAG AA for text"


def test_export_html_and_json(page, window):
    for old in window.home.glob("token-importance*"):
        old.unlink()
    score(page, HOSTILE, "tfidf", "llmlingua2")
    set_eta(page, "0.42")
    until(lambda: counts(page) == expected(page, 0.42))
    wanted, data = counts(page), view(page)
    one(page, "#export-html").click()
    one(page, "#export-json").click()
    files = [window.home / f"token-importance.{kind}" for kind in ("html", "json")]
    until(lambda: all(path.is_file() and path.stat().st_size for path in files))
    exported = json.loads(files[1].read_text(encoding="utf-8"))
    assert exported["eta"] == 0.42
    assert exported["documents"][0]["text"] == HOSTILE == data["documents"][0]["text"]
    groups = exported["documents"][0]["groups"]
    assert {name: sum(group["important"]) for name, group in groups.items()} == wanted
    requests_made(page)
    page.get(files[0].as_uri())
    until(lambda: len(all_of(page, ".panel")) == 2)
    assert counts(page) == wanted
    assert view(page)["documents"] == data["documents"]
    assert one(page, "#eta").get_attribute("value") == "0.42"
    assert page.execute_script("return window.hacked") is None
    assert not all_of(page, "form"), "an exported page asks no server"
    assert [url for url in requests_made(page) if url.startswith("http")] == []
    # An export exports again.
    again = page.execute_script("return sftGo.pageOf(sftGo.view)")
    assert again == files[0].read_text(encoding="utf-8")


def test_hostile_texts_are_shown_as_they_are(page):
    score(page, HOSTILE, "tfidf")
    shown = one(page, ".tokens").get_attribute("textContent")
    assert shown == f"<|bos|>{HOSTILE}<|eos|>"
    assert page.execute_script("return window.hacked") is None
    assert not all_of(page, ".tokens script, .tokens b")
    score(page, "Lines\n\nand\ttabs\nremain.", "tfidf")
    assert one(page, ".tokens").get_attribute("textContent") == "<|bos|>Lines\n\nand\ttabs\nremain.<|eos|>"


def test_errors_and_emptiness_are_said(page, server):
    one(page, "#score").click()
    assert one(page, "[role=alert]").text == "Paste a text first."
    choose(page)
    page.execute_script("document.querySelector('#text').value = 'a'")
    one(page, "#score").click()
    assert one(page, "[role=alert]").text == "Choose at least one grouper."
    choose(page, "tfidf")
    page.execute_script("document.querySelector('#text').value = 'a'.repeat(300000)")
    one(page, "#score").click()
    until(lambda: "300,000 characters" in one(page, "[role=alert]").text)
    assert any("413" in text for text in complaints(page)), "the browser notes the refusal, and nothing else"


def test_a_key_is_asked_for(window, tmp_path, shards):
    environment = {"SFT_GO_API_KEY": "open sesame"}
    with Server(tmp_path / "log", "--state", shards, "--grouper", "tfidf", environment=environment) as running:
        window.get(running.wait().url)
        until(lambda: one(window, "#key").is_displayed())
        assert "Authorization" in one(window, "[role=alert]").text
        one(window, "#key").send_keys("open sesame\t")
        until(lambda: all_of(window, "[name=grouper]"))
        until(lambda: all_of(window, ".panel"))
        assert "four chambers" in one(window, ".tokens").text, "the example, once it can be scored"
    complaints(window)  # the 401, which is no fault of the page


def test_screenshots(page):
    """Not a check: with SFT_GO_SCREENSHOTS=DIR, pictures for a person to look at."""
    if "SFT_GO_SCREENSHOTS" not in os.environ:
        pytest.skip("set SFT_GO_SCREENSHOTS to a directory to get pictures")
    home = Path(os.environ["SFT_GO_SCREENSHOTS"])
    for theme in ("light", "dark"):
        page.execute_script("document.documentElement.dataset.theme = arguments[0]", theme)
        choose(page, "tfidf", "llmlingua2")
        page.execute_script(
            "const e = document.querySelector('#example'); e.value = '0'; e.dispatchEvent(new Event('change'))"
        )
        until(lambda: all_of(page, ".panel"))
        page.save_screenshot(str(home / f"{theme}.png"))
