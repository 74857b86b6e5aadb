"""A headless Chromium, driven as a user would: by mouse, keyboard and the text on the page.

Uses the DevTools protocol, so nothing but a browser has to be installed.
"""

import base64
import itertools
import json
import shutil
import subprocess
import time
from collections.abc import Generator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from websockets.sync.client import connect
from websockets.sync.connection import Connection

START_SECONDS = 240
READY_SECONDS = 120

WIDTH, HEIGHT = 1300, 900

_KEYS = {"Enter": (13, "\r"), "Escape": (27, ""), "ArrowDown": (40, "")}
_CENTRE = """(element => {
    if (!element) return null;
    element.scrollIntoView({block: 'center', behavior: 'instant'});
    const r = element.getBoundingClientRect();
    return r.width ? [r.x + r.width / 2, r.y + r.height / 2] : null;
})"""


_PAGE_REPLACED = ("Inspected target navigated or closed", "Execution context was destroyed.", "Cannot find context with specified id")
"""What Chromium answers where another page has come while something was asked of the one before."""


class PageReplaced(Exception):
    """The page of which something was asked was left before it could answer."""


class Tab:
    """A browser tab. Records its requests, the addresses that were answered 503, and errors and warnings of the page."""

    def __init__(self, browser: Connection) -> None:
        self._browser = browser
        self._numbers = itertools.count(1)
        self._session: dict[str, str] = {}
        self.requests: list[str] = []
        self.unavailable: list[str] = []
        self.errors: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = {"sessionId": self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        for domain in ("Runtime", "Log", "Network", "Page"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        self._browser.send(json.dumps({"id": number, "method": method, "params": parameters, **self._session}))
        while True:
            message = json.loads(self._browser.recv(timeout=READY_SECONDS))
            if message.get("id") == number:
                if message.get("error", {}).get("message") in _PAGE_REPLACED:
                    raise PageReplaced(method)
                assert "error" not in message, message
                return message["result"]
            if message.get("sessionId") == self._session.get("sessionId"):
                self._record(message.get("method", ""), message.get("params", {}))

    def _record(self, event: str, details: dict[str, Any]) -> None:
        if event == "Network.requestWillBeSent":
            self.requests.append(details["request"]["url"])
        elif event == "Network.responseReceived" and details["response"]["status"] == HTTPStatus.SERVICE_UNAVAILABLE:
            self.unavailable.append(details["response"]["url"])
        elif event == "Runtime.exceptionThrown" or (event == "Runtime.consoleAPICalled" and details["type"] in ("error", "warning")):
            self.errors.append(json.dumps(details)[:500])
        elif event == "Log.entryAdded" and details["entry"]["level"] in ("error", "warning"):
            self.errors.append(details["entry"]["text"])

    def value(self, expression: str) -> Any:
        reply = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in reply, reply
        return reply["result"].get("value")

    def open(self, address: str, *, until: str) -> None:
        """Open a page and wait until an expression is true on it; reload when one of its requests was answered 503."""
        deadline = time.monotonic() + READY_SECONDS
        n_unavailable = len(self.unavailable)
        self.call("Page.navigate", url=address)
        while not self._holds(until):
            assert time.monotonic() < deadline, f"{until} did not become true; the last errors: {self.errors[-3:]}"
            if len(self.unavailable) > n_unavailable:
                n_unavailable = len(self.unavailable)
                self.call("Page.navigate", url=address)
            time.sleep(0.05)

    def wait_until(self, expression: str, *, seconds: float = READY_SECONDS) -> None:
        deadline = time.monotonic() + seconds
        while not self._holds(expression):
            assert time.monotonic() < deadline, f"{expression} did not become true; the last errors: {self.errors[-3:]}"
            time.sleep(0.05)

    def _holds(self, expression: str) -> bool:
        """Return whether an expression is true. While a page is replaced it is not: elements may be missing, or the whole page."""
        try:
            return bool(self.value(f"(() => {{ try {{ return Boolean({expression}) }} catch {{ return false }} }})()"))
        except PageReplaced:
            return False

    def click(self, element: str) -> None:
        """Click the centre of an element, once it is visible and has stopped moving."""
        previous, centre = None, None
        # The element may vanish for a moment while the page renders again.
        while centre is None or previous != centre:
            self.wait_until(f"{_CENTRE}({element})")
            time.sleep(0.1)
            previous, centre = centre, self.value(f"{_CENTRE}({element})")
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=centre[0], y=centre[1], button="left", clickCount=1)

    def press(self, key: str) -> None:
        code, text = _KEYS[key]
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, text=text)

    def write(self, element: str, text: str) -> None:
        """Type into a field, replacing its content."""
        self.click(element)
        self.value(f"({element}).select()")
        self.call("Input.insertText", text=text)

    def wait_for_text(self, words: str) -> None:
        """Wait until the page shows a text."""
        self.wait_until(_contains_text(words))

    def shows_text(self, words: str) -> bool:
        """Return whether the page shows a text."""
        return bool(self.value(_contains_text(words)))

    def close(self) -> None:
        self.call("Page.close")

    def picture(self, file: Path) -> None:
        file.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))


def with_text(selector: str, text: str) -> str:
    """Return a JavaScript expression for the element whose whole text is `text`."""
    return f"[...document.querySelectorAll({json.dumps(selector)})].find(e => e.innerText.trim() === {json.dumps(text)})"


def _contains_text(words: str) -> str:
    return f"document.body.innerText.replace(/\\s+/g, ' ').includes({json.dumps(words)})"


def find_browser() -> str | None:
    """Return the path of an installed browser, if there is one."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@contextmanager
def browser(program: str) -> Generator[Connection]:
    """Run a browser with a fresh profile for the duration of the block."""
    # The sandbox needs privileges that containers lack; the browser opens our own pages only.
    command = [program, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", f"--window-size={WIDTH},{HEIGHT}"]
    command += ["--no-first-run", "--disable-background-networking", "--remote-debugging-port=0"]
    # A headless browser reports no mouse, and pages would render for a phone.
    command += ["--blink-settings=primaryHoverType=2,availableHoverTypes=2,primaryPointerType=4,availablePointerTypes=4"]
    with TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        command += [f"--user-data-dir={folder}", "about:blank"]
        with (folder / "log").open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
            try:
                port_file, deadline = folder / "DevToolsActivePort", time.monotonic() + START_SECONDS
                while not (port_file.exists() and len(port_file.read_text().split()) == 2):
                    assert process.poll() is None, (folder / "log").read_text()[-2000:]
                    assert time.monotonic() < deadline, "the browser did not start"
                    time.sleep(0.1)
                port, path = port_file.read_text().split()
                with connect(f"ws://127.0.0.1:{port}{path}", max_size=None, proxy=None, ping_interval=None) as connection:
                    yield connection
            finally:
                process.terminate()
