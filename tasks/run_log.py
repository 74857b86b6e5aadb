"""Progress of a core call as a Prefect progress artifact with an estimate of what is left, and as log lines."""

import re
import time
from typing import cast
from uuid import UUID

import httpx
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.logging import get_run_logger

from clusterlora.progress.pace import Pace
from clusterlora.progress.timing import duration

ARTIFACT_EVERY_SECONDS = 3.0
LOG_EVERY_SECONDS = 30.0


def artifact_key(*parts: str) -> str:
    """Return an artifact key made of lower-case letters, digits and dashes, the only characters Prefect accepts."""
    return re.sub(r"[^a-z0-9]+", "-", "-".join(parts).lower()).strip("-")


class PrefectRunLog:
    """A RunLog for code that runs inside a flow or task run.

    It calls the API at most every few seconds; during an outage the artifact is stale, and the work goes on.
    """

    def __init__(self, *name: str) -> None:
        self._key = artifact_key("progress", *name)
        self._logger = get_run_logger()
        self._values: dict[str, float] = {}
        self._artifact: UUID | None = None
        self._phase, self._total, self._unit, self._done = "", 0, "", 0
        self._pace = Pace()
        self._began = self._drawn = self._logged = 0.0

    def phase(self, name: str, *, total: int, unit: str) -> None:
        """Begin a stretch of work with its own progress artifact."""
        self._phase, self._total, self._unit, self._done = name, total, unit, 0
        self._pace = Pace()
        self._began = self._drawn = self._logged = time.monotonic()
        self._values, self._artifact = {}, None
        self._logger.info("%s: %d %s", name, total, unit)
        self._draw()

    def advance(self, units: int = 1, **values: float) -> None:
        """Count units; update artifact and log when they are due, or when the phase is complete."""
        self._done += units
        self._values.update(values)
        moment = time.monotonic()
        self._pace.seconds_left(self._done, self._total, moment)
        complete = self._done >= self._total
        if complete or moment - self._drawn >= ARTIFACT_EVERY_SECONDS:
            self._drawn = moment
            self._draw()
        if complete or moment - self._logged >= LOG_EVERY_SECONDS:
            self._logged = moment
            self._logger.info("%s", self.text())

    def metric(self, name: str, value: float, *, step: int) -> None:  # noqa: ARG002  (the curve itself is the tracker's)
        """Show the latest point of a curve beside the bar."""
        self._values[name] = value

    def note(self, message: str) -> None:
        """Write one line to the run's log."""
        self._logger.info("%s", message)

    def text(self) -> str:
        """Return the phase, its progress, the latest values and the estimated time left."""
        now = time.monotonic()
        left = self._pace.seconds_left(self._done, self._total, now)
        parts = [f"{self._phase}: {self._done}/{self._total} {self._unit}"]
        parts += [f"{name.replace('_', ' ')} {value:.4g}" for name, value in self._values.items()]
        if left is not None:
            parts.append(f"about {duration(left)} left")
        elif self._done >= self._total:
            parts.append(f"took {duration(now - self._began)}")
        return " · ".join(parts)

    def _draw(self) -> None:
        percent = 100.0 if not self._total else min(100.0, 100.0 * self._done / self._total)
        try:
            if self._artifact is None:
                self._artifact = cast("UUID", create_progress_artifact(percent, key=self._key, description=self.text()))
            else:
                update_progress_artifact(self._artifact, percent, description=self.text())
        except httpx.HTTPError as error:
            self._logger.warning("the progress artifact could not be updated: %s", error)
