"""Headless Chromium for the tests of the page: Debian's ``chromium`` and ``chromium-driver``, driven by Selenium."""

from __future__ import annotations

import base64
import json
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from selenium import webdriver
from selenium.webdriver.support.ui import WebDriverWait

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
MISSING = "needs headless Chromium: apt-get install chromium chromium-driver"

_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-search-engine-choice-screen",
    "--hide-scrollbars",
)

_DROP = """
const [type, name, data] = arguments;
const bytes = Uint8Array.from(atob(data), (character) => character.charCodeAt(0));
const transfer = new DataTransfer();
transfer.items.add(new File([bytes], name, { type: name.endsWith(".png") ? "image/png" : "image/jpeg" }));
const field = type === "drop" ? "dataTransfer" : "clipboardData";
const make = type === "drop" ? DragEvent : ClipboardEvent;
document.body.dispatchEvent(new make(type, { bubbles: true, cancelable: true, [field]: transfer }));
"""


class Browser:
    """One Chromium, with a profile and a folder for downloads of its own."""

    def __init__(self, driver: webdriver.Chrome, downloads: Path) -> None:
        self.driver = driver
        self.downloads = downloads

    def open(self, url: str, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """A fresh page, in a window of that many CSS pixels."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        media = {"prefers-color-scheme": "dark" if dark else "light", "prefers-reduced-motion": "reduce"}
        features = [{"name": name, "value": value} for name, value in media.items()]
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        self.driver.get(url)
        self.messages()

    def element(self, identifier: str) -> Any:
        """The element with that id."""
        return self.driver.find_element("id", identifier)

    def text(self, identifier: str) -> str:
        """What is written in an element, whether it can be seen or not; spaces that do not break read as others."""
        return str(self.element(identifier).get_property("textContent")).replace("\N{NO-BREAK SPACE}", " ")

    def script(self, code: str, *arguments: Any) -> Any:
        """The value of a script that ends in ``return``; it may await."""
        wrapped = (
            "const done = arguments[arguments.length - 1];"
            f"(async (...args) => {{ {code} }})(...Array.prototype.slice.call(arguments, 0, -1))"
            ".then((value) => done({ value }), (error) => done({ error: String(error) }));"
        )
        answer = self.driver.execute_async_script(wrapped, *arguments)
        assert "error" not in answer, answer["error"]
        return answer.get("value")

    def wait(self, condition: Callable[[], object]) -> None:
        """Until it holds."""
        WebDriverWait(self.driver, 30, poll_frequency=0.05).until(lambda _: condition())

    def choose(self, path: Path) -> None:
        """Chooses a file in the page's file field."""
        self.element("file").send_keys(str(path))

    def give(self, way: str, path: Path, name: str = "") -> None:
        """Drops (``drop``) or pastes (``paste``) a file."""
        data = base64.b64encode(path.read_bytes()).decode()
        self.driver.execute_script(_DROP, way, name or path.name, data)

    def wait_for_result(self, name: str) -> None:
        """Until both pictures of a file are there."""
        self.wait(lambda: self.text("status").startswith(f"{name}: ") or self.text("alert"))
        assert self.text("alert") == ""

    def download(self, button: str, name: str) -> bytes:
        """What a button saves under a name."""
        path = self.downloads / name
        path.unlink(missing_ok=True)
        self.element(button).click()
        self.wait(path.exists)
        return path.read_bytes()

    def messages(self) -> list[str]:
        """What stands in the console since the last call."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        """What was asked for since the last call, answered or not, but for what the browser finds in itself.

        Of a browser that was started to ``watch``.
        """
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        urls = [each["params"]["request"]["url"] for each in events if each["method"] == "Network.requestWillBeSent"]
        return [url for url in urls if not url.startswith(("blob:", "data:", "chrome:"))]

    def screenshot(self, path: Path) -> None:
        """The whole page, as PNG."""
        size = self.driver.execute_cdp_cmd("Page.getLayoutMetrics", {})["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        answer = self.driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
        path.write_bytes(base64.b64decode(answer["data"]))


@contextmanager
def start_browser(folder: Path, *, watch: bool = False) -> Iterator[Browser]:
    """Starts Chromium, and notes all its requests where it is to watch; ends it with everything it started."""
    assert CHROMIUM
    assert DRIVER
    downloads = folder / "downloads"
    downloads.mkdir()
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*_FLAGS, f"--user-data-dir={folder / 'profile'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL" if watch else "OFF"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        driver.set_script_timeout(60)
        behaviour = {"behavior": "allow", "downloadPath": str(downloads)}
        driver.execute_cdp_cmd("Browser.setDownloadBehavior", behaviour)
        yield Browser(driver, downloads)
    finally:
        driver.quit()
