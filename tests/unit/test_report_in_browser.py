"""The report in a real browser: drawn, searchable, silent, and on its own."""

import itertools
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import connect
from websockets.sync.connection import Connection

from clusterlora.report.data import ReportData
from clusterlora.report.page import page

START_SECONDS = 60
READY_SECONDS = 60


class Tab:
    """A browser's tab, spoken to in the DevTools protocol; remembers the requests it made and everything it complained of."""

    def __init__(self, browser: Connection) -> None:
        self._browser = browser
        self._numbers = itertools.count(1)
        self._session: dict[str, str] = {}
        self.requests: list[str] = []
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
            self._remember(message.get("method", ""), message.get("params", {}))

    def _remember(self, event: str, said: dict[str, Any]) -> None:
        if event == "Network.requestWillBeSent":
            self.requests.append(said["request"]["url"])
        elif event == "Runtime.exceptionThrown" or (event == "Runtime.consoleAPICalled" and said["type"] in ("error", "warning")):
            self.complaints.append(json.dumps(said)[:500])
        elif event == "Log.entryAdded" and said["entry"]["level"] in ("error", "warning"):
            self.complaints.append(said["entry"]["text"])

    def value(self, expression: str) -> Any:
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def open(self, file: Path) -> None:
        self.call("Page.navigate", url=file.as_uri())
        self.wait_until("document.documentElement?.dataset.ready === 'yes'")

    def wait_until(self, expression: str) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while not self.value(expression):
            assert time.monotonic() < deadline, f"{expression} did not become true; complaints: {self.complaints}"
            time.sleep(0.05)


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no browser is installed; apt-get install chromium")
    folder = tmp_path_factory.mktemp("browser")
    # Its sandbox needs privileges that containers do not give; the only page it opens is ours.
    command = [program, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1300,900"]
    command += [
        "--no-first-run",
        "--disable-background-networking",
        "--remote-debugging-port=0",
        f"--user-data-dir={folder}",
        "about:blank",
    ]
    with (folder / "log").open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        try:
            port_file, deadline = folder / "DevToolsActivePort", time.monotonic() + START_SECONDS
            while not (port_file.exists() and len(port_file.read_text().split()) == 2):
                assert process.poll() is None, (folder / "log").read_text()[-2000:]
                assert time.monotonic() < deadline, "the browser did not start"
                time.sleep(0.1)
            port, path = port_file.read_text().split()
            with connect(f"ws://127.0.0.1:{port}{path}", max_size=None, proxy=None) as connection:
                yield Tab(connection)
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def opened(tab: Tab, report_data: ReportData, tmp_path_factory: pytest.TempPathFactory) -> Tab:
    file = tmp_path_factory.mktemp("report") / "report.html"
    file.write_text(page(report_data), encoding="utf-8")
    tab.open(file)
    return tab


@pytest.mark.parametrize(
    ("figure", "marks", "n"),
    [
        ("means", ".bars .point path", 4),
        ("means", ".errorbar", 4),
        ("spread", ".boxlayer .trace path.box", 4),
        ("spread", ".boxlayer path.point", 48),
        ("against", ".scatterlayer path.point", 12),
        ("clusters", ".scatterlayer path.point", 12),
        ("curves", ".scatterlayer path.js-line", 2),
        ("costs", ".scatterlayer path.point", 4),
    ],
)
def test_every_figure_has_drawn_its_marks(opened: Tab, figure: str, marks: str, n: int) -> None:
    assert opened.value(f"document.querySelectorAll('#figure-{figure} {marks}').length") == n


def test_nothing_is_fetched_nothing_is_complained_of_and_no_persona_runs_a_script(opened: Tab) -> None:
    assert [url.partition(":")[0] for url in opened.requests if not url.startswith(("data:", "blob:"))] == ["file"]
    assert opened.complaints == []
    assert opened.value("document.title") == "trial · clusterlora"
    assert opened.value("document.querySelectorAll('img').length") == 0


def test_the_search_box_filters_the_answers(opened: Tab, report_data: ReportData) -> None:
    def search(words: str) -> int:
        opened.value(f"search.value = {json.dumps(words)}; search.dispatchEvent(new Event('input'))")
        return int(opened.value("document.getElementById('found').textContent").split()[0])

    assert search("") == 36
    assert opened.value("document.querySelectorAll('.example').length") == 12
    opened.value("document.getElementById('more').click()")
    assert opened.value("document.querySelectorAll('.example').length") == 24
    assert search("persona_007 ROOM") == 3
    assert opened.value("[...document.querySelectorAll('.example h3')].every(h => h.textContent.startsWith('persona_007'))")
    assert search("nobody says this") == 0
    assert search("onerror") == 36
    search("")
    opened.value("persona.value = '0'; persona.dispatchEvent(new Event('change'))")
    assert opened.value("document.querySelectorAll('.example').length") == 3
    assert opened.value("document.querySelector('.example .answer:last-child .said').textContent") == report_data.examples[0].persona_id


def test_a_heading_sorts_the_methods_by_the_keyboard(opened: Tab) -> None:
    first = "document.querySelector('.sortable tbody tr td').textContent"
    assert opened.value(first) == "cluster ★"
    opened.value("document.querySelectorAll('.sortable th button')[1].focus()")
    for wanted, order in (("cluster ★", "descending"), ("baseline", "ascending")):
        for kind in ("keyDown", "keyUp"):
            opened.call("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13, text="\r")
        assert opened.value("document.activeElement.parentElement.getAttribute('aria-sort')") == order
        assert opened.value(first) == wanted


def test_another_method_is_drawn_against_the_reference_when_it_is_chosen(opened: Tab) -> None:
    shown = "document.querySelector('#figure-against .ytitle').textContent"
    assert opened.value(shown).startswith("cluster")
    opened.value("s = document.querySelector('select[data-figure=against]'); s.value = 1; s.dispatchEvent(new Event('change'))")
    opened.wait_until(f"{shown}.startsWith('per_persona')")
    assert opened.value("document.querySelectorAll('#figure-against .scatterlayer path.point').length") == 12


def test_the_theme_reaches_page_and_figures(opened: Tab) -> None:
    inks = "[getComputedStyle(document.body).color, document.querySelector('#figure-means .xtick text').style.fill].join()"
    before = opened.value(inks).split("),")
    opened.value("document.getElementById('theme').click()")
    opened.wait_until(f"{inks} !== {json.dumps('),'.join(before))}")
    after = opened.value(inks).split("),")
    assert before[0] != after[0]
    assert before[1] != after[1]
    assert opened.complaints == []
