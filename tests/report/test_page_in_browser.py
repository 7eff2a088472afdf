"""The page in headless Chromium: it draws, asks nobody for anything, and takes text as text."""

import importlib.util
import json
import re
import shutil
from pathlib import Path

import jinja2
import pytest
from report_cases import HOSTILE, rollouts_shown, write_run

from mmrl.report import report as page_module
from mmrl.report.report import report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER),
        reason="no chromium and chromedriver: apt-get install chromium chromium-driver",
    ),
    pytest.mark.skipif(
        importlib.util.find_spec("selenium") is None, reason="no selenium: pip install 'mmrl[test]'"
    ),
]
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--hide-scrollbars",
    "--no-first-run",
    # What would ask the network for something, and what takes long to start.
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-component-extensions-with-background-pages",
    "--disable-default-apps",
    "--disable-extensions",
    "--disable-features=Translate,OptimizationHints,MediaRouter,DialMediaRouteProvider",
    "--disable-gpu",
    "--disable-software-rasterizer",
    "--disable-sync",
    "--mute-audio",
)
# The labels that are shown on axes, and whether each lies within its picture.
LABELS = """
const labels = [...document.querySelectorAll("svg.plot text")].filter((one) => one.getClientRects().length);
return labels.map((one) => {
  const its = one.getBoundingClientRect(), all = one.ownerSVGElement.getBoundingClientRect();
  return [one.textContent, its.left >= all.left && its.right <= all.right && its.top >= all.top - 2];
});
"""
NAME = "<img src=x onerror='window.pwned=1'>"  # of a folder


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    # Begin with an empty page: that for a new tab asks for hundreds of things.
    start = {"session.restore_on_startup": 4, "session.startup_urls": ["about:blank"]}
    options.add_experimental_option("prefs", start)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("pages")


@pytest.fixture(scope="module")
def runs(folder):
    return [write_run(folder / NAME), write_run(folder / "vppo", name="vppo", seed=1)]


@pytest.fixture(scope="module")
def one(folder, runs):
    return write(folder / "one.html", runs[:1], 10)


@pytest.fixture(scope="module")
def two(folder, runs):
    return write(folder / "two.html", runs, 20)


def write(path: Path, runs, rollouts: int) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmrl.report.report.rollout_sample", rollouts_shown)
        path.write_text(report(runs, rollouts, lambda _: None))
    return path


def size(driver, width: int, height: int = 900) -> None:
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def look(driver, path: Path, width: int = 1280) -> None:
    """Open a page afresh, without what was logged of those before."""
    for kind in ("browser", "performance"):
        driver.get_log(kind)
    size(driver, width)
    driver.get(path.as_uri())


def requests(driver, path: Path) -> list[str]:
    """Addresses that were asked for, but the page itself and what it holds."""
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    asked = [
        one["params"]["request"]["url"] for one in events if one["method"] == "Network.requestWillBeSent"
    ]
    assert path.as_uri() in asked  # the log works
    return [url for url in asked if url != path.as_uri() and not url.startswith("data:")]


def press(driver, *keys: str) -> None:
    from selenium.webdriver import ActionChains

    ActionChains(driver).send_keys(*keys).perform()


def text(driver, selector: str) -> str:
    """What stands in an element, character for character: as JSON, which half of a letter survives, too."""
    return json.loads(
        driver.execute_script(f"return JSON.stringify(document.querySelector({selector!r}).textContent)")
    )


def place(driver) -> int:
    return int(text(driver, "#place").split()[0])


def problems(driver, path: Path) -> list[str]:
    """What is wrong with a page of hostile texts; an error of the page's script is one, too."""
    look(driver, path)
    found = [entry["message"] for entry in driver.get_log("browser") if entry["level"] != "INFO"]
    found += requests(driver, path)
    if not driver.execute_script("return document.querySelectorAll('figure[data-panel]').length"):
        found.append("nothing is drawn")
        return found
    for number, wanted in enumerate(HOSTILE[:10]):
        driver.execute_script(f"document.querySelectorAll('#strip button')[{number}].click()")
        shown = text(driver, "#tokens")
        found += [] if shown == wanted else [f"{shown[:60]!r} is shown instead of {wanted[:60]!r}"]
    alien = "[onerror], [src=x], #tokens :not(span), #problem :not(span)"
    made = driver.execute_script("return document.querySelectorAll(arguments[0]).length", alien)
    found += ["an element was made of a text"] if made else []
    found += ["a script of a text ran"] if driver.execute_script("return window.pwned !== undefined") else []
    return found


def test_hostile_text_is_text_and_nothing_is_asked_for(driver, one):
    assert problems(driver, one) == []
    assert text(driver, "h1") == NAME


@pytest.mark.parametrize("broken", ["data", "template", "script"])
def test_a_page_that_does_not_escape_is_found_out(driver, folder, runs, monkeypatch, broken):
    """What the test above says is worth something: without escaping it fails."""
    if broken == "data":
        monkeypatch.setattr(page_module, "as_script_data", json.dumps)
    elif broken == "template":
        plain = jinja2.Environment
        monkeypatch.setattr(jinja2, "Environment", lambda **kinds: plain(**{**kinds, "autoescape": False}))
    else:
        read = page_module._file
        monkeypatch.setattr(
            page_module,
            "_file",
            lambda name: read(name).replace("node.append(text", "node.innerHTML += (text"),
        )
    assert problems(driver, write(folder / f"{broken}.html", runs[:1], 10)) != []


def test_only_the_pages_own_script_may_run(driver, one):
    look(driver, one)
    driver.execute_script(
        "const script = document.createElement('script'); script.textContent = 'window.pwned = 1';"
        "document.body.append(script); document.body.insertAdjacentHTML('beforeend', arguments[0])",
        "<img src='https://example.invalid/x.png'><b onclick='window.pwned = 1' id=b></b>",
    )
    driver.execute_script("document.getElementById('b').click()")
    assert driver.execute_script("return window.pwned === undefined")
    refused = [entry["message"] for entry in driver.get_log("browser")]
    assert sum("Content Security Policy" in message for message in refused) >= 3


def panels(driver) -> dict[str, int]:
    """Titles of the panels, and how many lines or columns each has drawn with something in it."""
    return driver.execute_script("""
      const count = (one, what) => [...one.querySelectorAll(what + '[data-entry]')].filter(
        (part) => part.getTotalLength() > 50).length;
      return Object.fromEntries([...document.querySelectorAll('figure[data-panel]')].map(
        (one) => [one.dataset.panel, count(one, 'path') + count(one, 'rect')]));
    """)


def test_panels_are_there_with_their_lines(driver, one):
    look(driver, one)
    driver.execute_script("for (const one of document.querySelectorAll('details')) one.open = true")
    found = panels(driver)
    assert found["Accuracy"] == 2
    assert found["Held-out errors"] == 3
    assert found["Token perception"] == 3
    assert found["Seconds of a step"] == 20 * 2  # rollout and update; the rest is less than a pixel
    named = (
        "Accuracy by data set, held out", "Components, training batch", "KL to the reference", "Entropy",
        "Length of responses", "Responses cut off", "Perception KL in the loss", "Gradient norm",
        "Clipped tokens", "Ratio to the old policy", "Sampler against trainer", "Mass cut off",
        "Tokens a second", "own/metric",
    )  # fmt: skip
    assert [name for name in named if not found.get(name)] == []
    assert all(found.values())
    assert "Tools, calls in a response" not in found


def test_runs_lie_over_each_other_and_can_be_hidden(driver, two):
    look(driver, two)
    assert panels(driver)["Accuracy"] == 4
    lines = "document.querySelectorAll('[data-panel=Accuracy] path[data-entry]')"
    colours = driver.execute_script(f"return [...{lines}].map((one) => getComputedStyle(one).stroke)")
    assert len(set(colours)) == 2
    driver.execute_script("document.querySelectorAll('#runs button')[1].click()")
    assert panels(driver)["Accuracy"] == 2
    assert text(driver, "main").count("algorithm.name") == 1


def test_lines_can_be_hidden_and_values_read_by_keyboard(driver, one):
    look(driver, one)
    driver.execute_script("document.querySelector('[data-panel=Accuracy] .legend button').click()")
    assert panels(driver)["Accuracy"] == 1
    driver.execute_script("document.querySelector('[data-panel=Accuracy] svg.plot').focus()")
    press(driver, "\ue013", "\ue011")  # up: not a key of it; home
    assert text(driver, "[data-panel=Accuracy] .at") == "step 0"
    press(driver, "\ue014")  # right
    assert text(driver, "[data-panel=Accuracy] .at") == "step 1"
    assert "training batch 58.4 %" in text(driver, "#status")


def test_keys_go_through_rollouts_and_tokens(driver, one):
    look(driver, one)
    press(driver, "j", "j", "k")
    assert place(driver) == 2
    driver.execute_script("document.getElementById('next').focus()")
    press(driver, "\ue014", "\ue014", "\ue012")  # right, right, left
    assert place(driver) == 3
    press(driver, "k", "k", "k")
    assert place(driver) == 10  # around the end
    press(driver, "j")
    driver.execute_script("document.getElementById('tokens').focus()")
    press(driver, "\ue014", "\ue014")
    assert place(driver) == 1
    assert text(driver, ".token.active") == HOSTILE[0][9:18]
    assert "token 2 of" in text(driver, "#token")
    assert "perception" in text(driver, "#token")


def test_tab_reaches_everything_that_can_be_pressed_and_shows_where_it_is(driver, one):
    look(driver, one)
    driver.execute_script(
        "window.seen = []; document.addEventListener('focusin', ({target}) =>"
        " window.seen.push(target.id || target.getAttribute('class')))"
    )
    press(driver, *"\ue004" * 60)
    assert {"skip", "plot", "by-kind", "next", "tokens"} <= set(driver.execute_script("return window.seen"))
    assert driver.execute_script("return getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_filters(driver, two):
    look(driver, two)
    choose = "const one = document.getElementById(arguments[0]); one.value = arguments[1]; one.onchange()"
    assert text(driver, "#place") == "1 of 20"
    driver.execute_script(choose, "by-run", "1")
    assert text(driver, "#place") == "1 of 10"
    driver.execute_script(choose, "by-kind", "right")
    assert text(driver, "#place") == "1 of 5"
    driver.execute_script(choose, "by-kind", "reasoning_error")
    assert text(driver, "#kind") == "reasoning error"
    driver.execute_script(choose, "by-source", "a")
    assert text(driver, "#place") == "none"
    assert driver.execute_script("return document.getElementById('rollout').hidden")


def test_tokens_are_marked_by_colour_and_by_thickness(driver, one):
    look(driver, one)
    styles = "[...document.querySelectorAll('#tokens .token')].map((one) => getComputedStyle(one))"
    assert len(set(driver.execute_script(f"return {styles}.map((one) => one.backgroundColor)"))) > 3
    widths = driver.execute_script(f"return {styles}.map((one) => one.borderBottomWidth)")
    assert (widths[0], widths[-1]) == ("0px", "4px")
    driver.execute_script("const one = document.getElementById('by-value'); one.value = ''; one.onchange()")
    assert driver.execute_script("return document.querySelector('#tokens .token').title") == ""


def test_long_text_is_folded(driver, one):
    look(driver, one)
    driver.execute_script("document.querySelectorAll('#strip button')[9].click()")
    height = "return document.getElementById('tokens').clientHeight"
    assert driver.execute_script(height) < 400
    driver.execute_script("document.querySelector('#tokens + .unfold').click()")
    assert driver.execute_script(height) > 10_000


@pytest.mark.parametrize("dark", [False, True])
def test_a_phone_shows_it_without_scrolling_sideways(driver, two, dark):
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    look(driver, two, width=360)
    for number in range(10):
        driver.execute_script(f"document.querySelectorAll('#strip button')[{number}].click()")
        assert driver.execute_script("return document.documentElement.scrollWidth") == 360
    paper = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(19, 20, 22)" if dark else "rgb(251, 251, 250)")


def test_labels_of_axes_are_whole(driver, folder):
    run = write_run(folder / "sizes", texts=())
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for k, row in enumerate(rows[1:]):
        row |= {
            "loss/loss": (k - 3) * 1e-5 / 7,
            "loss/policy_loss": 2e-7 * k,
            "loss/ratio": 0.1 * k - 12345.5,
        }
        row |= {"loss/gradient_norm": 123456789.0 * k, "rollout/tokens_per_second": 1234567.0 + k}
        row |= {"perception/mean": 10.0**-k, "policy/reference_kl": 1.23e-6 * k}
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = write(folder / "sizes.html", [run], 0)
    for width in (1280, 360):
        look(driver, page, width)
        for _ in ("linear", "logarithmic"):
            labels = driver.execute_script(LABELS)
            assert len(labels) > 100
            assert [label for label, whole in labels if not whole] == []
            assert [
                label for label, _ in labels if "e" in label or re.match("-0( |$|[.]0*( |$))", label)
            ] == []
            driver.execute_script("document.querySelectorAll('button.log').forEach((one) => one.click())")
