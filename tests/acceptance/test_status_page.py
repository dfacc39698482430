"""The status page in a real browser, of the real daemon: what a person sees at three in the morning."""

import os
import signal
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from heifyd.sandbox import CONFIGURATION_ID, Sandbox
from heifyd.wording import printable
from tests.harness import DaemonProcess, Place, eventually, make_place, need_program, running, sample

PHONE = (390, 844)
DESK = (1200, 900)
NOTED = """
  window.noted = [];
  document.addEventListener("securitypolicyviolation", (event) => window.noted.push(event.violatedDirective));
  window.addEventListener("error", (event) => window.noted.push(String(event.message)));
  window.alert = () => window.noted.push("alert");
"""
"""What is put into each page before its own script: whatever goes wrong in it is kept."""


class Browser:
    """A headless Chromium; `leave` fails where anything went wrong in a page that is not expected."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver
        self.may_lose_contact = False

    def open(self, url: str) -> None:
        self.driver.get(url)

    def look_as(self, size: tuple[int, int] = DESK, scheme: str = "light", zone: str = "UTC") -> None:
        width, height = size
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        self.driver.execute_cdp_cmd("Emulation.setTimezoneOverride", {"timezoneId": zone})

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def words(self, css: str = "body") -> str:
        """Return what a person reads there; "" where there is no such thing (any more)."""
        try:
            return self.driver.find_element(By.CSS_SELECTOR, css).text
        except (NoSuchElementException, StaleElementReferenceException):
            return ""

    def sees(self, words: str, css: str = "body", limit_s: float = 60.0) -> None:
        eventually(lambda: words in self.words(css), f"{words!r} in {css}", limit_s)

    def press(self, *keys: str) -> None:
        ActionChains(self.driver).send_keys(*keys).perform()

    def focuses(self, css: str) -> bool:
        found: bool = self.run("return document.activeElement.matches(arguments[0])", css)
        return found

    def leave(self) -> None:
        """Leave the page, before its daemon ends, and look at what was kept of it."""
        noted = self.run("return window.noted")
        self.driver.get("about:blank")
        assert noted == []
        logged = [entry["message"] for entry in self.driver.get_log("browser")]  # type: ignore[no-untyped-call]
        expected = "ERR_CONNECTION_REFUSED" if self.may_lose_contact else "nothing"
        assert [each for each in logged if expected not in each] == []


@contextmanager
def chromium(*arguments: str) -> Iterator[Browser]:
    options = webdriver.ChromeOptions()
    options.binary_location = need_program("chromium")
    service = Service(need_program("chromedriver"))
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", *arguments):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, service)
    try:
        driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": NOTED})
        yield Browser(driver)
    finally:
        driver.quit()


@pytest.fixture
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        browser.look_as()
        yield browser


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
        return port


@pytest.fixture
def place(tmp_path: Path, sandbox: Sandbox) -> Place:
    return with_page(tmp_path, sandbox.url)


def with_page(root: Path, url: str, *more: str) -> Place:
    status = f"status:\n  listen: 127.0.0.1:{free_port()}"
    return make_place(root, url, settings="\n".join(("settle_seconds: 0.3", *more, status)))


def url_of(daemon: DaemonProcess) -> str:
    return f"http://{daemon.await_event('status.listening')[0]['address']}/"


@contextmanager
def watched(place: Place, browser: Browser, environ: Mapping[str, str] | None = None) -> Iterator[DaemonProcess]:
    """Run the daemon with its page in the browser, which leaves before the daemon ends."""
    with running(place, environ) as daemon:
        browser.open(url_of(daemon))
        yield daemon
        browser.leave()


def total(browser: Browser, what: str) -> str:
    """Return a number of those at the top of the page."""
    found = [each.split("\n") for each in browser.words(".totals").split("\n\n")]
    flat = [line for each in found for line in each]
    return flat[flat.index(what) + 1] if what in flat else ""


HOSTILE = [
    "<img src=x onerror=alert(1)>.wav",
    '"><script>alert(1)<script>.wav',
    "'onmouseover='alert(1)' x='.wav",
    "&lt;b&gt;.wav",
    "gpj.\u202eexe.wav",
    "a line\nbreak.wav",
    os.fsdecode(b"\xff\xfe<i>.wav"),
    "x" * 251 + ".wav",
]


def test_names_that_would_be_markup_are_read_as_they_are(place: Place, browser: Browser) -> None:
    for name in HOSTILE:
        (place.calls / name).write_bytes(b"no audio")
    with watched(place, browser):
        browser.sees("8 failed in the last 24 hours", "h1")
        names = {each.text for each in browser.driver.find_elements(By.CSS_SELECTOR, "#failures ~ ul h3")}
        assert names == {printable(name) for name in HOSTILE}
        seen_at = browser.words("header time")
        eventually(lambda: browser.words("header time") != seen_at, "an update, which goes another way")
        assert {each.text for each in browser.driver.find_elements(By.CSS_SELECTOR, "#failures ~ ul h3")} == names
        assert browser.run("return document.querySelectorAll('img, main script, main i, main b').length") == 0
        assert browser.run("return document.documentElement.scrollWidth <= innerWidth")


def test_what_happens_is_seen_without_loading_the_page_again(place: Place, sandbox: Sandbox, browser: Browser) -> None:
    with watched(place, browser):
        browser.sees("All is well", "h1")
        browser.run("window.still = true")
        assert total(browser, "Done today") == "0"
        (place.calls / "call.wav").write_bytes(sample(".wav"))
        eventually(lambda: total(browser, "Done today") == "1", "the recording")
        sandbox.fail("402")
        (place.calls / "held.wav").write_bytes(sample(".wav", "held"))
        browser.sees("Held: nothing is uploaded", "h1")
        browser.sees("out_of_minutes", ".card.held")
        browser.sees("What to do: top up the account's transcription minutes", ".card.held")
        assert browser.driver.title.startswith("Held: ")
        assert "icon-held" in browser.run("return document.querySelector('link[rel=icon]').href")
        browser.sees("1", ".folders tbody td")
        assert browser.run("return window.still") is True


def test_lost_contact_is_said_loudly_and_found_again(place: Place, browser: Browser) -> None:
    browser.may_lose_contact = True
    with running(place) as daemon:
        browser.open(url_of(daemon))
        browser.sees("All is well", "h1")
        assert browser.words("#contact") == ""
        browser.run("window.still = true")
    browser.sees("No contact with heifyd since", "#contact")
    assert browser.driver.title.startswith("No contact: ")
    assert browser.run("return getComputedStyle(document.querySelector('h1'), '::before').content") == '"Last seen: "'
    assert browser.run("return document.querySelector('#contact').getAttribute('role')") == "alert"
    with running(place):
        eventually(lambda: browser.words("#contact") == "", "contact again")
        browser.sees("All is well", "h1")
        assert browser.driver.title.startswith("Well: ")
        assert browser.run("return window.still") is True
        browser.leave()


def test_a_daemon_that_stands_still_is_lost_contact_too(place: Place, browser: Browser) -> None:
    with watched(place, browser) as daemon:
        browser.sees("All is well", "h1")
        daemon.send(signal.SIGSTOP)
        try:
            browser.sees("It does not answer.", "#contact")
        finally:
            daemon.send(signal.SIGCONT)
        eventually(lambda: browser.words("#contact") == "", "contact again")


def test_an_upload_in_progress_has_a_bar_that_grows(tmp_path: Path, sandbox: Sandbox, browser: Browser) -> None:
    place = with_page(tmp_path, sandbox.url, "bandwidth_limit: 300k")
    call = sample(".wav") * 100
    with watched(place, browser) as daemon:
        (place.calls / "long.wav").write_bytes(call)
        browser.sees("long.wav", ".uploads")

        def share() -> float:
            found = browser.run("return document.querySelector('progress')?.position ?? 1")
            return float(found)

        first = share()
        assert 0 < first < 1
        eventually(lambda: first < share(), "growth")
        assert f"of {len(call) / 1e6:.1f} MB" in browser.words(".uploads")
        assert browser.run("return document.querySelector('progress').getAttribute('aria-label')") == "long.wav"
        daemon.await_event("recording.done")
        browser.sees("None that takes longer than a moment.")


def filled(root: Path, url: str, folders: int) -> Place:
    """Make a place with many folders, one of which is away, and something that failed."""
    place = with_page(root, url)
    lines = []
    for number in range(folders):
        folder = root / f"site-{number:02}-{'long-' * 20}name"
        folder.mkdir()
        (folder / f"{'y' * 200}.wav").write_bytes(b"no audio")
        lines.append(f"  - path: {folder}\n    configuration_id: {CONFIGURATION_ID}\n")
    place.config.write_text(place.config.read_text() + "".join(lines))
    return place


def violations(browser: Browser) -> list[str]:
    """Return what axe-core finds against WCAG 2.1 AA and good practice."""
    browser.run(resources.files("axe_core_python").joinpath("axe.min.js").read_text("utf-8"))
    found = browser.driver.execute_async_script("axe.run().then(arguments[arguments.length - 1])")
    return [f"{each['id']}: {node['html']}" for each in found["violations"] for node in each["nodes"]]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
def test_it_is_read_in_both_schemes_at_a_desk_and_on_a_phone(
    tmp_path: Path, sandbox: Sandbox, browser: Browser, size: tuple[int, int], scheme: str
) -> None:
    place = filled(tmp_path, sandbox.url, 5)
    browser.look_as(size, scheme)
    with running(place) as daemon:
        url = url_of(daemon)
        daemon.await_event("recording.failed", 5)
        browser.open(url)
        browser.sees("5 failed in the last 24 hours", "h1")
        ground = browser.run("return getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, ground[4:-1].split(", "))) < 384) is (scheme == "dark")
        assert browser.run("return document.documentElement.scrollWidth") <= size[0]
        assert violations(browser) == []
        sandbox.fail("402")
        (place.calls / "call.wav").write_bytes(sample(".wav"))
        browser.sees("Held", "h1")
        assert violations(browser) == []
        sandbox.clear_faults()
        browser.may_lose_contact = True
    browser.sees("No contact", "#contact")
    assert violations(browser) == []
    browser.leave()


def test_a_keyboard_gets_everywhere_and_stays_where_it_is_meanwhile(place: Place, browser: Browser) -> None:
    with watched(place, browser):
        browser.sees("All is well", "h1")
        browser.press(Keys.TAB)
        assert browser.focuses(".skip")
        assert browser.run("return document.activeElement.getBoundingClientRect().top") >= 0
        browser.press(Keys.ENTER)
        assert browser.focuses("main")
        for css in [".totals a"] * 6 + ["summary"]:
            browser.press(Keys.TAB)
            assert browser.focuses(css)
            assert browser.run("return getComputedStyle(document.activeElement).outlineStyle") == "solid"
        browser.press(Keys.ENTER)
        assert "Done" in browser.words(".plot table")
        (place.calls / "call.wav").write_bytes(sample(".wav"))
        eventually(lambda: total(browser, "Done today") == "1", "the recording")
        assert browser.focuses("summary")
        assert "Done" in browser.words(".plot table"), "the table stays open"


def test_times_are_those_of_who_looks_and_have_their_date(place: Place, browser: Browser) -> None:
    with running(place) as daemon:
        url = url_of(daemon)
        shown = {}
        for zone in ("Pacific/Kiritimati", "Pacific/Pago_Pago"):
            browser.look_as(zone=zone)
            browser.open(url)
            browser.sees(zone, "footer")
            at = browser.run("return new Date(document.querySelector('header time').dateTime).getTime() / 1000")
            shown[zone] = (browser.words("header time"), at)
        browser.leave()
        for (words, at), offset_h in zip(shown.values(), (14, -11), strict=True):
            assert words == time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(at + offset_h * 3600))


def test_without_scripts_the_page_is_whole_and_comes_again(place: Place) -> None:
    (place.calls / "text.wav").write_bytes(b"no audio")
    with running(place) as daemon, chromium("--blink-settings=scriptEnabled=false") as browser:
        url = url_of(daemon)
        daemon.await_event("recording.failed")
        browser.driver.get(url)
        assert "1 failed in the last 24 hours" in browser.words("h1")
        assert "text.wav" in browser.words("#failures ~ ul")
        (place.calls / "other.wav").write_bytes(b"no audio either")
        browser.sees("2 failed in the last 24 hours", "h1")


def test_a_person_with_the_token_sees_it_live(tmp_path: Path, sandbox: Sandbox, browser: Browser) -> None:
    token = "a-token-of-thirty-two-characters"
    place = with_page(tmp_path, sandbox.url)
    with running(place, {"HEIFYD_STATUS_TOKEN": token}) as daemon:
        browser.open(url_of(daemon).replace("://", f"://anybody:{token}@"))
        browser.sees("All is well", "h1")
        seen_at = browser.words("header time")
        eventually(lambda: browser.words("header time") != seen_at, "an update")
        assert token not in browser.run("return document.documentElement.outerHTML")
        browser.leave()
