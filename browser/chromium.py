"""A headless Chromium, driven as a person would: by a mouse, a keyboard and what a page says.

Spoken to in the DevTools protocol, so a browser is all it needs.
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
_PLACE = """(element => {
    if (!element) return null;
    element.scrollIntoView({block: 'center', behavior: 'instant'});
    const r = element.getBoundingClientRect();
    return r.width ? [r.x + r.width / 2, r.y + r.height / 2] : null;
})"""


class Tab:
    """A browser's tab; remembers the requests it made, those that a server was too busy for, and everything it complained of."""

    def __init__(self, browser: Connection) -> None:
        self._browser = browser
        self._numbers = itertools.count(1)
        self._session: dict[str, str] = {}
        self.requests: list[str] = []
        self.unserved: list[str] = []
        self.complaints: list[str] = []
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
                assert "error" not in message, message
                return message["result"]
            if message.get("sessionId") == self._session.get("sessionId"):
                self._remember(message.get("method", ""), message.get("params", {}))

    def _remember(self, event: str, said: dict[str, Any]) -> None:
        if event == "Network.requestWillBeSent":
            self.requests.append(said["request"]["url"])
        elif event == "Network.responseReceived" and said["response"]["status"] == HTTPStatus.SERVICE_UNAVAILABLE:
            self.unserved.append(said["response"]["url"])
        elif event == "Runtime.exceptionThrown" or (event == "Runtime.consoleAPICalled" and said["type"] in ("error", "warning")):
            self.complaints.append(json.dumps(said)[:500])
        elif event == "Log.entryAdded" and said["entry"]["level"] in ("error", "warning"):
            self.complaints.append(said["entry"]["text"])

    def value(self, expression: str) -> Any:
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def open(self, address: str, *, until: str) -> None:
        """Go to a page and wait until an expression holds on it; again when the server was too busy for what the page asked it."""
        deadline = time.monotonic() + READY_SECONDS
        heard = len(self.unserved)
        self.call("Page.navigate", url=address)
        while not self._holds(until):
            assert time.monotonic() < deadline, f"{until} did not become true; the last complaints: {self.complaints[-3:]}"
            if len(self.unserved) > heard:
                heard = len(self.unserved)
                self.call("Page.navigate", url=address)
            time.sleep(0.05)

    def wait_until(self, expression: str, *, seconds: float = READY_SECONDS) -> None:
        deadline = time.monotonic() + seconds
        while not self._holds(expression):
            assert time.monotonic() < deadline, f"{expression} did not become true; the last complaints: {self.complaints[-3:]}"
            time.sleep(0.05)

    def _holds(self, expression: str) -> bool:
        """Return whether an expression holds now; what it speaks of may be missing while one page makes room for another."""
        return bool(self.value(f"(() => {{ try {{ return Boolean({expression}) }} catch {{ return false }} }})()"))

    def click(self, element: str) -> None:
        """Click the middle of what an expression finds, once it is there and holds still."""
        before, place = None, None
        # A page that draws itself anew may take it away for a moment.
        while place is None or before != place:
            self.wait_until(f"{_PLACE}({element})")
            time.sleep(0.1)
            before, place = place, self.value(f"{_PLACE}({element})")
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left", clickCount=1)

    def press(self, key: str) -> None:
        code, text = _KEYS[key]
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, text=text)

    def write(self, element: str, text: str) -> None:
        """Write into a field, over what stands there."""
        self.click(element)
        self.value(f"({element}).select()")
        self.call("Input.insertText", text=text)

    def says(self, words: str) -> None:
        """Wait until the page shows these words."""
        self.wait_until(_shown(words))

    def shows(self, words: str) -> bool:
        """Return whether the page shows these words now."""
        return bool(self.value(_shown(words)))

    def close(self) -> None:
        self.call("Page.close")

    def picture(self, file: Path) -> None:
        file.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))


def with_text(selector: str, text: str) -> str:
    """Return the expression that finds the element whose whole text this is."""
    return f"[...document.querySelectorAll({json.dumps(selector)})].find(e => e.innerText.trim() === {json.dumps(text)})"


def _shown(words: str) -> str:
    return f"document.body.innerText.replace(/\\s+/g, ' ').includes({json.dumps(words)})"


def find_browser() -> str | None:
    """Return where the browser is, if there is one."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@contextmanager
def browser(program: str) -> Generator[Connection]:
    """Run a browser with a fresh profile inside the block."""
    # Its sandbox needs privileges that containers do not give; the only pages it opens are ours.
    command = [program, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", f"--window-size={WIDTH},{HEIGHT}"]
    command += ["--no-first-run", "--disable-background-networking", "--remote-debugging-port=0"]
    # It has no mouse, and pages would take it for a telephone.
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
