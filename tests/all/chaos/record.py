"""The record of trials: a JSON file and its Markdown page."""

import fcntl
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.all.chaos.catalogue import BLOWS


@dataclass(frozen=True)
class Trial:
    """What was done to a study and what came of it."""

    seed: int
    blow: str
    did: str
    """More exactly what, where the name of the blow does not say it."""
    moment: str
    struck: bool
    """Whether the study was still running when the fault was injected."""
    launches: int
    finished_before: int
    trained_again: tuple[str, ...]
    half_written: tuple[str, ...]
    duplicates: tuple[str, ...]
    mended: tuple[str, ...]
    left: tuple[str, ...]
    completed: bool
    seconds: float
    said: str = ""
    """The last words of a study that did not complete."""

    @property
    def good(self) -> bool:
        return self.completed and not (self.trained_again or self.half_written or self.duplicates or self.left)


def add(file: Path, made: Trial) -> None:
    """Add a trial to the file, in place of an earlier one with its seed, and write the page beside it. Any number may do so at once."""
    file.touch()
    with file.open("r+", encoding="utf-8") as opened:
        fcntl.flock(opened, fcntl.LOCK_EX)
        trial_by_seed = {t.seed: t for t in _parsed(opened.read())} | {made.seed: made}
        trials = [trial_by_seed[seed] for seed in sorted(trial_by_seed)]
        opened.seek(0)
        opened.truncate()
        opened.write("[\n" + ",\n".join(json.dumps(asdict(t), ensure_ascii=False) for t in trials) + "\n]\n")
        file.with_suffix(".md").write_text(page(trials), encoding="utf-8")


def read(file: Path) -> list[Trial]:
    return _parsed(file.read_text(encoding="utf-8"))


def _parsed(text: str) -> list[Trial]:
    rows = json.loads(text) if text.strip() else []
    values: list[dict[str, Any]] = [{k: tuple(v) if isinstance(v, list) else v for k, v in row.items()} for row in rows]
    return [Trial(**row) for row in values]


def page(trials: Sequence[Trial]) -> str:
    """Return the page of trials."""
    bad = [t for t in trials if not t.good]
    struck = sum(t.struck for t in trials)
    seeds = ", ".join(_ranges([t.seed for t in trials]))
    lines = [*_HEAD, f"**{len(trials)} trials (seeds {seeds}): {len(trials) - len(bad)} good, {len(bad)} not.**", ""]
    lines += [f"{struck} faults struck a study that was still running, {len(trials) - struck} a study that had just ended.", ""]
    lines += ["## By fault", ""]
    lines += ["| fault | trials | good | most launches | findings mended by verify |", "|---|---:|---:|---:|---:|"]
    # A fault that no trial had is listed as well.
    for blow in BLOWS:
        these = [t for t in trials if t.blow == blow]
        most, mended = max((t.launches for t in these), default="-"), sum(len(t.mended) for t in these)
        lines.append(f"| {blow} | {len(these)} | {sum(t.good for t in these)} | {most} | {mended} |")
    if bad:
        lines += ["", "## What went wrong", ""]
        lines += [f"- seed {t.seed}, {t.blow} ({t.moment}): {_wrong(t)}" for t in bad]
    lines += ["", "## Every trial", "", *_COLUMNS]
    lines += [
        f"| {t.seed} | {t.blow}{f' ({t.did})' if t.did else ''} | {t.moment}{'' if t.struck else ', ended by then'} | {t.launches} | "
        f"{t.finished_before} | {len(t.trained_again)} | {len(t.mended)} | {'yes' if t.good else '**no**'} | {t.seconds:.0f} |"
        for t in trials
    ]
    return "\n".join(lines) + "\n"


def _wrong(trial: Trial) -> str:
    what = [f"{name.replace('_', ' ')} {', '.join(getattr(trial, name))}" for name in _MUST_BE_EMPTY if getattr(trial, name)]
    return "; ".join(what + ([] if trial.completed else [f"did not complete: {' '.join(trial.said.split())[-300:]}"])).replace("|", "\\|")


def _ranges(numbers: Sequence[int]) -> list[str]:
    """Return `1-4`, `7` for 1, 2, 3, 4, 7."""
    ranges: list[list[int]] = []
    for number in sorted(numbers):
        if ranges and number == ranges[-1][-1] + 1:
            ranges[-1].append(number)
        else:
            ranges.append([number])
    return [f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in ranges]


_MUST_BE_EMPTY = ("trained_again", "half_written", "duplicates", "left")

_COLUMNS = (
    "| seed | fault | after | launches | adapters finished before | trained again | mended | good | seconds |",
    "|---:|---|---|---:|---:|---:|---:|---|---:|",
)

_HEAD = (
    "# Reliability",
    "",
    "Measured by `make chaos`; every figure is in `reliability.json`. It makes the trials of seeds 1 to 108 that are not",
    "recorded; stop it at any time. `make chaos CHAOS='--minutes 60'` begins no trial after an hour, `CHAOS='--first-seed",
    "109 --trials 27'` adds others, and `CHAOS=--again` makes recorded ones anew.",
    "",
    "A trial runs a study of six people (baseline, unified, two clusters, six personal adapters), injects a fault once a",
    "drawn number of adapters is finished and a drawn time has passed, and launches the study again until it ends. It is",
    "good when",
    "",
    "- the study ended well, on the first launch or a later one;",
    "- no adapter that was finished when the fault struck, or at a later launch, was trained again (read from the training logs);",
    "- no visible file was half written, neither right after the fault nor at the end;",
    "- no row was there twice;",
    "- after `clusterlora study verify --repair`, database, adapter store and MLflow agree about everything.",
    "",
    "Faults of a training run, a flow, a worker or Prefect strike the stack that `clusterlora study run` starts: a Prefect",
    "server, an MLflow server, one cpu and two gpu workers, with the studies on PostgreSQL. The others strike a study that",
    "runs in one process (forked from one that has imported everything, so that a launch is cheap) with a real PostgreSQL",
    "and a real MLflow server. Killed services are started again at the same address; in the stack, the command itself does",
    "it. A seed fixes the fault, its moment and everything drawn for it, but not what the machine does in the meantime.",
    "",
    "`no file can grow` limits the size of the process's files (RLIMIT_FSIZE), so that writes fail as on a full disk.",
    "`MLflow silent` stops the server's processes for a minute: connections are accepted, and nothing answers. `slow",
    "database` is a proxy that delays every packet. `the clock jumps` preloads a library (tests/all/chaos/clock.c) into the",
    "study, MLflow and PostgreSQL that moves their wall clock twice, by up to 30 days, forwards or back. `Prefect's clock",
    "jumps` does that to everything in the stack: the Prefect server, MLflow, the workers, the runs and PostgreSQL. `two",
    "hosts an hour apart` joins the study from a process with a disk of its own and a clock an hour ahead or behind, on the",
    "same servers. `two studies launched twice` starts the study again while it runs, and also, twice, another study on the",
    "same people and settings, which needs the same adapters.",
    "",
    "`the disk is full` writes a disk of 128 MB (a tmpfs) full to its last byte and leaves it so until the study has ended.",
    "`the database is deleted` removes SQLite's files under the study; adapters may then be trained again, as the record of",
    "them is what was deleted. `locked for two minutes` holds SQLite's write lock; `read-only` lets PostgreSQL refuse",
    "changes for up to 40 s, in open connections too. `SIGKILL as an alias moves` kills the study right before or right",
    "after MLflow moves a champion's or candidate's alias. `Ctrl-C` interrupts `clusterlora study run` at a random moment,",
    "as a terminal does. `ports taken` listens on both ports of a cold stack between the moment at which they were found",
    "free and the start of the servers. `a worker of another version` joins the gpu pool beside those of the stack.",
    "",
)
