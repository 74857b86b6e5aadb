"""Worker of the local pools: asks Prefect for runs as soon as one is there, and every ten seconds as any worker of Prefect does.

`prefect worker start` asks at fixed intervals. Each time costs the server 50 ms of CPU time, and a run waits for the next one. The server
is on this machine, so its middleware tells: it touches a file when a request made or resumed a run, and this worker looks at that file
twice a second. What Prefect schedules by itself (automations, schedules) waits for the ten seconds.
"""

import argparse
import asyncio
import math
import os
import time
from abc import ABC
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
from prefect.utilities.processutils import setup_signal_handlers_worker
from prefect.workers.process import ProcessWorker

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun
    from prefect.client.schemas.responses import WorkerFlowRunResponse

ASK_SECONDS = 10.0
"""Prefect's own default."""
RETRY_SECONDS = 2.0
FULL_SECONDS = 30.0
"""How often a worker asks that can take no run: Prefect calls a deployment not ready whose pool was not asked for a minute."""


class Bell:
    """Tells when to ask for runs."""

    def __init__(self, file: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._file, self._clock = file, clock
        self._asked_at, self._rung_at, self._free = -math.inf, 0, 0.0

    def is_due(self, free: float) -> bool:
        """Return whether to ask now, with room for `free` runs, and note it if so.

        It is time when a run was made since the last time, when there is more room than was left then, and after ten seconds.
        """
        rung_at, now = self._last_rung(), self._clock()
        waited = now - self._asked_at
        due = waited >= ASK_SECONDS or free > self._free or rung_at != self._rung_at if free else waited >= FULL_SECONDS
        if due:
            self._asked_at, self._rung_at = now, rung_at
        # Room that was taken meanwhile and is there again is room for another run.
        self._free = free if due else min(free, self._free)
        return due

    def taken(self) -> None:
        """Note that runs were taken: where another worker was faster, there is room again before the next look."""
        self._free = 0.0

    def unanswered(self) -> None:
        """Note that the server did not answer: ask again soon."""
        self._asked_at = self._clock() - ASK_SECONDS + RETRY_SECONDS

    def _last_rung(self) -> int:
        try:
            return self._file.stat().st_mtime_ns
        except OSError:
            return 0


class LocalWorker(ProcessWorker, ABC):
    """A process worker that asks when its bell says so. An ABC: what is none, Prefect registers in the place of its own process worker."""

    bell: Bell

    async def get_and_submit_flow_runs(self) -> "list[FlowRun]":
        """Ask for runs and start them, if it is time to ask."""
        if self._has_successfully_synced and not self.bell.is_due(self.limiter.available_tokens):
            return []
        try:
            runs = await super().get_and_submit_flow_runs()
        except httpx.HTTPError:
            self.bell.unanswered()
            raise
        if runs:
            self.bell.taken()
        return runs

    async def _submit_scheduled_flow_runs(self, flow_run_response: "list[WorkerFlowRunResponse]") -> "list[FlowRun]":
        # A run that was suspended and resumed while its former process is ending: taken now, it would end this worker (Prefect 3).
        held = self.limiter.statistics().borrowers
        return await super()._submit_scheduled_flow_runs([one for one in flow_run_response if one.flow_run.id not in held])


def main() -> None:
    """Run a worker until it is stopped."""
    parser = argparse.ArgumentParser(prog="python -m deployments.local_worker")
    parser.add_argument("--pool", required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--limit", type=int, required=True, help="runs at the same time")
    parser.add_argument("--bell", type=Path, required=True, help="file that is touched when a run was made")
    options = parser.parse_args()
    setup_signal_handlers_worker(os.getpid(), f"the worker {options.name}", print)
    worker = LocalWorker(work_pool_name=options.pool, name=options.name, limit=options.limit, create_pool_if_not_found=False)
    worker.bell = Bell(options.bell)
    with suppress(KeyboardInterrupt):
        asyncio.run(worker.start())


if __name__ == "__main__":
    main()
