"""Prefect's pages, used as a person uses them: by the titles of fields and the words on buttons."""

import json
import time
from collections.abc import Mapping, Sequence
from uuid import UUID

from browser.chromium import READY_SECONDS, Tab, with_text

TRIES = 5

SUBMITTED_TO = ("/create_flow_run", "/resume")
"""How the addresses end to which forms are sent."""


class PrefectPages:
    """Somebody in front of Prefect's pages, who fills in forms by the names of their fields."""

    def __init__(self, tab: Tab, api: str) -> None:
        self.tab = tab
        self._address = api.removesuffix("/api")

    def form(self, deployment_id: UUID) -> None:
        """Open the form that launches a deployment."""
        self.tab.open(f"{self._address}/deployments/deployment/{deployment_id}/run", until=with_text("button", "Submit"))

    def copy_to_new_run(self, run_id: UUID) -> None:
        """Open the form with the values of an earlier run."""
        self.open_run(run_id)
        self.tab.click("document.querySelector('header.page-heading .p-icon-button-menu button')")
        self.tab.click(with_text("a.p-overflow-menu-item", "Copy to new run"))
        self.tab.wait_until(with_text("button", "Submit"))

    def open_run(self, run_id: UUID) -> None:
        self.tab.open(f"{self._address}/runs/flow-run/{run_id}", until="document.querySelector('header.page-heading')")

    def gate_form(self, run_id: UUID) -> None:
        """Open the form of a run that waits for a word on its gate."""
        self.open_run(run_id)
        self.tab.click(with_text("button", "Resume"))
        self.tab.says("No configuration of the ladder passed the gate")

    def answer(self, run_id: UUID, choice: str, fields: Mapping[str, str], *, says: str = "Flow run resumed") -> None:
        """Fill in the form of a run that waits for a word on its gate, and submit it; again when the server was too busy to take it."""
        for _ in range(TRIES):
            self.gate_form(run_id)
            self.choose(["What now?"], choice)
            for title, value in fields.items():
                self.fill([title], value)
            if self.submit(says=says):
                return
        raise AssertionError(f"the server was too busy {TRIES} times")

    def submit(self, *, says: str) -> bool:
        """Press the button; return True once the page says these words, False when the server was too busy: on SQLite it then answers 503.

        Pages ask for other things meanwhile, and ask again for those that were refused.
        """
        heard, deadline = len(self.tab.unserved), time.monotonic() + READY_SECONDS
        self.tab.click(with_text("button", "Submit"))
        while not self.tab.shows(says):
            if any(address.endswith(SUBMITTED_TO) for address in self.tab.unserved[heard:]):
                return False
            assert time.monotonic() < deadline, f"the page does not say {says!r}"
            time.sleep(0.1)
        return True

    def choices(self, path: Sequence[str]) -> list[str]:
        """Return what a field offers to choose from."""
        self._unfold(path)
        found = self.tab.value("[...document.querySelectorAll('.p-select-option')].map(option => option.innerText.trim())")
        self.tab.press("Escape")
        self.tab.wait_until("!document.querySelector('.p-select-option')")
        return found

    def choose(self, path: Sequence[str], value: str) -> None:
        """Choose one of the values of a field."""
        self._unfold(path)
        self.tab.click(with_text(".p-select-option", value))

    def fill(self, path: Sequence[str], value: str) -> None:
        """Write into a field; one that holds nothing is first told that it will hold something, by the first of its buttons."""
        self.tab.wait_until(_field(path))
        if self.tab.value(f"{_field(path)}.querySelector('.schema-form-property-null') !== null"):
            self.tab.click(f"{_field(path)}.querySelector('.p-button-group__button')")
        self.tab.write(f"{_field(path)}.querySelector('input, textarea')", value)

    def add(self, path: Sequence[str], value: str) -> None:
        """Add an item to a field that is a list of texts."""
        self.tab.click(f"{_field(path)}.querySelector('.p-draggable-list__create-button')")
        self.tab.write(f"[...{_field(path)}.querySelectorAll('textarea')].find(item => !item.value)", value)

    def _unfold(self, path: Sequence[str]) -> None:
        self.tab.wait_until(_field(path))
        # A list that is opened by the mouse closes again while the page still scrolls to it.
        self.tab.value(f"{_field(path)}.querySelector('.p-select-button__control').focus()")
        self.tab.press("ArrowDown")
        self.tab.wait_until("document.querySelector('.p-select-option')")


def _field(path: Sequence[str]) -> str:
    """Return the expression that finds a form's field by the titles on the way to it."""
    return f"""{json.dumps(path)}.reduce((within, title) => [...within.querySelectorAll('.schema-form-property')].find(
        one => one.querySelector('.schema-form-property__label').textContent.replace('(Optional)', '').trim() === title), document)"""
