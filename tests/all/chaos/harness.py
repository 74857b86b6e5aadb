"""Injects faults into studies at random moments and checks the results: `python -m tests.all.chaos.harness --record docs/reliability.json`.

After each blow the study is started again until it ends; then nothing that was finished may have been trained again, nothing be half
written or there twice, and `clusterlora study verify` must find nothing that it could not mend.
"""

import argparse
import json
import random
import signal
import sys
import time
import traceback
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from clusterlora.ports.stores import Stores
from tests.all.chaos import look
from tests.all.chaos.blows import NOTHING, Blow, Struck
from tests.all.chaos.catalogue import BLOWS, CYCLE, blow_of
from tests.all.chaos.place import ClockStackPlace, ColdStackPlace, Place, SmallDiskPlace, SqlitePlace, StackPlace, place
from tests.all.chaos.record import Trial, add, read

PLACES: dict[str, type[Place]] = {
    "process": Place,
    "sqlite": SqlitePlace,
    "disk": SmallDiskPlace,
    "stack": StackPlace,
    "cold": ColdStackPlace,
    "clock": ClockStackPlace,
}
MOST_LAUNCHES = 5
PATIENCE_SECONDS = 900
"""After so long a launch counts as hanging."""


@dataclass(frozen=True)
class Snapshot:
    """What was finished at a moment, and how often everything had been trained by then."""

    finished: frozenset[str]
    trainings: Counter[str]

    def trained_again(self, later: Counter[str]) -> set[str]:
        # A process may be killed between keeping an adapter and saying so: the first word on it may come later.
        return {name for name in self.finished if later[name] > max(1, self.trainings[name])}


def snapshot(stores: Stores, study: str) -> Snapshot:
    # In this order: what is finished in between has been told by the time it is counted.
    finished = look.finished(stores, study)
    return Snapshot(finished, look.trainings(stores, study))


def trial(seed: int, there: Place) -> Trial:
    """Launch a study, inject the fault at the moment drawn for the seed, launch it again until it ends, and check what came of it."""
    name, blow, rng, began = f"chaos-{seed}", BLOWS[blow_of(seed)], random.Random(seed), time.monotonic()
    more = {blow.sabotage[0]: rng.choice(blow.sabotage[1])} if blow.sabotage else {}
    struck = Struck(there, name, seed, [there.launch(name, seed, slow=blow.slow, more=more)], rng)
    moment = ", ".join(more.values()) or wait_for_moment(struck, slow_start=isinstance(there, StackPlace))
    alive = struck.processes[0].poll() is None
    before, did = snapshot(there.stores(), name), blow.strike(struck)
    halves = look.half_written(there.stores())
    codes = [process.wait(PATIENCE_SECONDS) for process in struck.processes]
    for companion in struck.companions:
        companion.wait(PATIENCE_SECONDS)
    snapshots, launches = [before], 1
    while codes[0] != 0 and launches < MOST_LAUNCHES:
        snapshots.append(snapshot(there.stores(), name))
        codes[0] = there.launch(name, seed, slow=blow.slow).wait(PATIENCE_SECONDS)
        launches += 1
    if len(codes) > 1:
        codes[0] = codes[0] or second_study(f"{name}-b", seed, struck, blow)
    # Services and clock are as they were before anything is looked at.
    there.set_clock(0)
    stores, mended, left = there.stores(), list[str](), list[str]()
    studies = [name] if len(codes) == 1 else [name, f"{name}-b"]
    duplicates = [str(rows) for study in studies for rows in stores.studies.duplicates(study)] if not codes[0] else []
    for study in studies if not codes[0] else []:
        mended += [f["what"] for f in there.findings(study, repair=True) if f["repaired"]]
        left += [f["what"] for f in there.findings(study, repair=False)]
    total = look.trainings(stores, name)
    again = set[str]() if blow.loses_record else set[str]().union(*(s.trained_again(total) for s in snapshots))
    return Trial(
        seed=seed,
        blow=blow_of(seed),
        did=did,
        moment=moment,
        struck=alive and did != NOTHING,
        launches=launches,
        finished_before=len(before.finished),
        trained_again=tuple(sorted(again)),
        half_written=tuple(sorted({*halves, *look.half_written(stores)})),
        duplicates=tuple(duplicates),
        mended=tuple(mended),
        left=tuple(left),
        completed=codes[0] == 0,
        seconds=round(time.monotonic() - began, 1),
        said="" if codes[0] == 0 else there.last_output(name),
    )


def second_study(name: str, seed: int, struck: Struck, blow: Blow) -> int:
    """Launch the other study until it ends; return the last exit status."""
    code = 1
    for _ in range(MOST_LAUNCHES):
        code = struck.there.launch(name, seed, slow=blow.slow).wait(PATIENCE_SECONDS)
        if code == 0:
            break
    return code


def wait_for_moment(struck: Struck, *, slow_start: bool) -> str:
    """Wait until the moment of the blow, or the end of the study; return the moment in words.

    The number of adapters makes it fall into every phase, however fast the machine is: 0 means before any, 9 is all of them.
    """
    n_adapters = struck.rng.choice((0, 0, 1, 2, 4, 9, 9))
    seconds = struck.rng.uniform(0, (40 if n_adapters == 0 else 20) if slow_start else 6)
    stores, process = struck.there.stores(), struck.processes[0]
    while n_adapters and process.poll() is None and len(look.finished(stores, struck.study)) < n_adapters:
        time.sleep(0.2)
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    return f"{n_adapters} adapters + {seconds:.1f} s" if n_adapters else f"{seconds:.1f} s"


def run_trials(seeds: Iterable[int], deadline: float) -> Iterator[Trial]:
    """Yield trials as they end, those of one kind of place together; none begins after the deadline."""
    for kind in PLACES.values():
        these = deque(seed for seed in seeds if BLOWS[blow_of(seed)].place is kind)
        n_before = -1
        # Where a trial breaks down, the others get services of their own; where these do not start, the others of this kind are left out.
        while these and time.monotonic() < deadline and len(these) != n_before:
            n_before = len(these)
            try:
                with place(kind) as there:
                    while these and time.monotonic() < deadline:
                        yield trial(these.popleft(), there)
            except Exception:  # noqa: BLE001  (a fault of one trial must not cost the night)
                traceback.print_exc()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--trials", type=int, default=4 * len(CYCLE), help="so many seeds from the first on")
    parser.add_argument("--minutes", type=float, help="begin no trial after so many minutes")
    parser.add_argument("--again", action="store_true", help="make trials that are recorded once more; otherwise they are left out")
    parser.add_argument("--place", choices=PLACES, help="of these, only the ones on a study of this kind")
    parser.add_argument("--record", type=Path, help="JSON file to add the trials to; the page is written beside it")
    options = parser.parse_args()
    # The services end with it, however it ends.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    kinds = [PLACES[options.place]] if options.place else list(PLACES.values())
    recorded = (
        {made.seed for made in read(options.record)} if options.record and options.record.exists() and not options.again else set[int]()
    )
    every = range(options.first_seed, options.first_seed + options.trials)
    seeds = [seed for seed in every if BLOWS[blow_of(seed)].place in kinds and seed not in recorded]
    deadline = time.monotonic() + 60 * (options.minutes or 1e6)
    all_good = True
    for made in run_trials(seeds, deadline):
        all_good &= made.good
        sys.stdout.write(json.dumps(asdict(made), ensure_ascii=False) + "\n")
        sys.stdout.flush()
        if options.record:
            add(options.record, made)
    return 0 if all_good else 1


if __name__ == "__main__":
    raise SystemExit(main())
