"""Prefect's pages, operated as a user does: by field titles and button labels."""

import json
import time
from collections.abc import Mapping, Sequence
from uuid import UUID

from browser.chromium import READY_SECONDS, Tab, with_text

TRIES = 5

SUBMITTED_TO = ("/create_flow_run", "/resume")
"""Ends of the addresses that forms are submitted to."""


class PrefectPages:
    """A user of Prefect's pages: opens pages and fills in forms by the titles of their fields."""

    def __init__(self, tab: Tab, api: str) -> None:
        self.tab = tab
        self._address = api.removesuffix("/api")

    def form(self, deployment_id: UUID) -> None:
        """Open the form that launches a deployment."""
        self.tab.open(f"{self._address}/deployments/deployment/{deployment_id}/run", until=with_text("button", "Submit"))

    def copy_to_new_run(self, run_id: UUID) -> None:
        """Open the launch form with the values of an earlier run."""
        self.open_run(run_id)
        self.tab.click("document.querySelector('header.page-heading .p-icon-button-menu button')")
        self.tab.click(with_text("a.p-overflow-menu-item", "Copy to new run"))
        self.tab.wait_until(with_text("button", "Submit"))

    def open_run(self, run_id: UUID) -> None:
        self.tab.open(f"{self._address}/runs/flow-run/{run_id}", until="document.querySelector('header.page-heading')")

    def leave(self) -> None:
        """Leave the page: that of a run that goes on asks the server, and is drawn again, all the time."""
        self.tab.open("about:blank", until="true")

    def gate_form(self, run_id: UUID) -> None:
        """Open the form of a run that awaits a decision on its gate."""
        self.open_run(run_id)
        self.tab.click(with_text("button", "Resume"))
        self.tab.wait_for_text("No configuration of the ladder passed the gate")

    def answer(self, run_id: UUID, choice: str, fields: Mapping[str, str], *, expect: str = "Flow run resumed") -> None:
        """Fill in and submit the form of a run that awaits a decision on its gate; repeat while the server answers 503."""
        for _ in range(TRIES):
            self.gate_form(run_id)
            self.choose(["What now?"], choice)
            for title, value in fields.items():
                self.fill([title], value)
            if self.submit(expect=expect):
                return
        raise AssertionError(f"the server answered 503 {TRIES} times")

    def submit(self, *, expect: str) -> bool:
        """Press Submit; return True once the page shows `expect`, False when the server answered 503, as it does on SQLite under load.

        Only requests that submit forms count: the page repeats its other requests by itself.
        """
        n_unavailable, deadline = len(self.tab.unavailable), time.monotonic() + READY_SECONDS
        self.tab.click(with_text("button", "Submit"))
        while not self.tab.shows_text(expect):
            if any(address.endswith(SUBMITTED_TO) for address in self.tab.unavailable[n_unavailable:]):
                return False
            assert time.monotonic() < deadline, f"the page does not show {expect!r}"
            time.sleep(0.1)
        return True

    def choices(self, path: Sequence[str]) -> list[str]:
        """Return the options of a select field."""
        self._unfold(path)
        options = self.tab.value("[...document.querySelectorAll('.p-select-option')].map(option => option.innerText.trim())")
        self._fold(path)
        return options

    def choose(self, path: Sequence[str], value: str) -> None:
        """Choose an option of a select field."""
        self._unfold(path)
        self.tab.click(with_text(".p-select-option", value))

    def fill(self, path: Sequence[str], value: str) -> None:
        """Type into a field; the first button of an optional field switches it from null to a value."""
        self.tab.wait_until(_field(path))
        if self.tab.value(f"{_field(path)}.querySelector('.schema-form-property-null') !== null"):
            self.tab.click(f"{_field(path)}.querySelector('.p-button-group__button')")
        self.tab.write(f"{_field(path)}.querySelector('input, textarea')", value)

    def add(self, path: Sequence[str], value: str) -> None:
        """Choose one more option of a field that is a list of names."""
        self._unfold(path)
        self.tab.click(with_text(".p-select-option", value))
        self._fold(path)

    def _unfold(self, path: Sequence[str]) -> None:
        self.tab.wait_until(_field(path))
        # By keyboard: a list opened with the mouse closes again while the page scrolls to it.
        self.tab.value(f"{_field(path)}.querySelector('.p-select-button__control').focus()")
        self.tab.press("ArrowDown")
        self.tab.wait_until("document.querySelector('.p-select-option')")

    def _fold(self, path: Sequence[str]) -> None:
        # A click on an option takes the focus, and with it the key, from the field.
        self.tab.value(f"{_field(path)}.querySelector('.p-select-button__control').focus()")
        self.tab.press("Escape")
        self.tab.wait_until("!document.querySelector('.p-select-option')")


def _field(path: Sequence[str]) -> str:
    """Return a JavaScript expression for a form's field by its title, after those of the fields that contain it."""
    return f"""{json.dumps(path)}.reduce((within, title) => [...within.querySelectorAll('.schema-form-property')].find(
        one => one.querySelector('.schema-form-property__label').textContent.replace('(Optional)', '').trim() === title), document)"""
