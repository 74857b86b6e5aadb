"""Renders docs/scale.md: what `benchmarks.load` and `benchmarks.studies` measured, and the cost of a million personas at those rates."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clusterlora.evaluation.markdown import markdown_table

MILLION = 1_000_000
DIALOGUES, ITEMS, SCORES = 50, 10, 3
PARAMETER_BYTES, NAME_BYTES = 500_000, 18
"""Largest parameters that Prefect accepts, and the bytes of an adapter name in those of a training run, quotes and comma included."""
ADAPTER_BYTES = 220_000
"""Size of an adapter of the embedded model at the mission's rank 8."""
STUDY_SIZES = (200, 1000, 3000, 10_000)
"""Studies that the page is about; it says which of them were not run."""
DATABASES = {"postgresql": "PostgreSQL", "sqlite": "SQLite"}

_WORDS = """Training dominates. Rows take hours, weights take storage, and memory is the first limit.

**Sharded**

- Trainings and evaluations are distributed over `runtime.shards` runs: left open, one for each worker of the pool when the study begins,
  and two at least. A run names its adapters in its parameters, of which Prefect refuses more than
  {parameters} kB: at least {shards} shards for a million. One shard per GPU and hour of training is more sensible.
- Studies are the larger shard: one per region or tenant of some ten thousand personas, all on one database. Each study then has its own
  unified adapter and clusters; an adapter that two studies need alike is trained once.
- The study database is one PostgreSQL; answers and scores are keyed by a digest and can be partitioned by study. SQLite is for one
  machine: only one process writes at a time.

**Streamed**

- Answers are written in batches of 2,000 and can be read by composition; files of dialogues are read line by line.
- Not streamed: a study's data set is held in memory, {memory} GB for a million, and so is its plan. This bounds a study to tens of
  thousands of personas on a worker with usual memory, and is why studies are the larger shard.
- Weights, at {adapter} kB per adapter of the embedded model at rank 8, are {weights} GB. They go through the artifact store, 128 in
  a file; a worker fetches only those that its shard starts from or answers with.

**Prefect** stores runs, not personas: a study has one per training group and shard, each with one progress artifact. It must be on
PostgreSQL: with SQLite, runs that report at once wait for each other. It cannot store a run per persona: starting a process, with 3 to 9
s of imports, would cost more than the training it is for.

**MLflow** stores a run per training group, with the mean curve and those of shared adapters, not one per persona; points are sent a
thousand per request. It cannot store a registered model per persona: the personal adapters of a study are one version together, whose
upload and check touch every file, so it too is bounded by the size of a study. Its backend must be a database server, and its
artifacts an object store behind the proxy.

**Comparison** keeps a mean per person and method and draws its bootstrap over people: it grows with people, not with rows."""


def page(measured: Mapping[str, Any], benchmarks: Path = Path("docs/benchmarks-avx2.json")) -> str:
    """Return the page.

    Args:
        measured: the content of scale.json.
        benchmarks: file with training rates, measured on a similar machine.
    """
    return "\n".join([*_measurements(measured), *study_lines(measured.get("studies", ())), *_plan(measured, benchmarks)]) + "\n"


def exponents(studies: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return by phase the slope of the logarithm of its seconds over that of the people, by least squares.

    Of phases that every study has; 1 is linear.
    """
    people = [math.log(study["people"]) for study in studies]
    phases = [phase for phase in studies[0]["seconds"] if all(study["seconds"].get(phase) for study in studies)]
    mean = sum(people) / len(people)
    slopes: dict[str, float] = {}
    for phase in phases:
        seconds = [math.log(study["seconds"][phase]) for study in studies]
        slopes[phase] = sum((n - mean) * s for n, s in zip(people, seconds, strict=True)) / sum((n - mean) ** 2 for n in people)
    return slopes


def study_lines(studies: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the section about whole studies; nothing with fewer than two."""
    if sum(not study.get("busy") for study in studies) < 2:
        return []
    quiet, sizes = [study for study in studies if not study.get("busy")], [study["people"] for study in studies]
    rows: list[tuple[str, ...]] = []
    for phase in exponents(quiet):
        # With one alone there is no slope: then what was killed counts, too.
        uncut = [study for study in quiet if not _is_cut(study, phase)]
        whole = uncut if len(uncut) > 1 else quiet
        each = [1000 * study["seconds"][phase] / study["people"] for study in studies]
        cells = [f"{ms:,.1f}{' †' if _is_cut(study, phase) else ''}" for ms, study in zip(each, studies, strict=True)]
        hours = whole[-1]["seconds"][phase] / whole[-1]["people"] * MILLION / 3600
        rows.append((phase, *cells, f"{exponents(whole)[phase]:.2f}", f"{hours:,.1f}"))
    missing = [f"{n:,}" for n in STUDY_SIZES if n not in sizes]
    revisions = sorted({str(study["revision"])[:7] for study in studies})
    not_run = f"Not run to the end for this page: studies of {' and '.join(missing)} people." if missing else ""
    n_each = studies[-1]["dialogues"] / studies[-1]["people"]
    sizes_in_words = " and ".join(filter(None, (", ".join(f"{n:,}" for n in sizes[:-1]), f"{sizes[-1]:,}")))
    return [
        "## A study, phase by phase",
        "",
        f"Studies of {sizes_in_words} people with {n_each:.0f} dialogues each, otherwise alike, read by",
        f"`python -m benchmarks.studies` (revision {', '.join(revisions)}): milliseconds of work per person, over all workers,",
        "by the clock of an otherwise idle machine. The exponent is the slope of the logarithm of a phase's seconds over that of the",
        "people: 1 is linear, and what costs the same at every size has less. The last column is a million people at the cost per",
        f"person of the largest study. {_beside(studies)}{not_run}".rstrip(),
        "",
        markdown_table(
            (
                "phase",
                *(f"ms each, {study['people']:,}{' (busy)' * study.get('busy', False)}" for study in studies),
                "exponent",
                "hours for a million",
            ),
            rows,
            right=(False, *(True for _ in sizes), True, True),
        ),
        "",
        *_totals(studies),
    ]


def _is_cut(study: Mapping[str, Any], phase: str) -> bool:
    """Return whether some of a phase's seconds are lost: a run that was killed has recorded none of its own."""
    return phase == "train" and "killed_after" in study


def _beside(studies: Sequence[Mapping[str, Any]]) -> str:
    busy = " and ".join(f"{study['people']:,}" for study in studies if study.get("busy"))
    return f"That of {busy} people ran beside other work: its times are more than the work takes and count in neither. " if busy else ""


def _totals(studies: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the table of time and memory of whole studies; nothing where these were not measured."""
    known = [study for study in studies if "most_gb" in study]
    if not known:
        return []
    rows = [(f"{study['people']:,}", f"{study['minutes']:,.1f}", f"{study['most_gb']:.2f}") for study in known]
    return [
        "From the command to its table, and the most memory at once of everything that runs: the command, Prefect and MLflow, workers and",
        "runs, pages that they share counted once (`python -m benchmarks.memory`, every three seconds).",
        "",
        markdown_table(("people", "minutes", "most GB"), rows, right=(True, True, True)),
        "",
        *(line for study in known if "killed_after" in study for line in _killed(study)),
    ]


def _killed(study: Mapping[str, Any]) -> list[str]:
    people, minutes = f"{study['people']:,}", f"{study['killed_after']:.0f}"
    return [
        f"{minutes} minutes into the study of {people} people the workers that train, and a run that trained, were killed with SIGKILL.",
        "Nobody did anything: other workers were started, and the run was tried again from its last checkpoint. The minutes are with what",
        "this cost; † is without the seconds of what was killed, which nobody recorded, and counts neither in the exponent nor for a",
        "million.",
        "",
    ]


def _measurements(measured: Mapping[str, Any]) -> list[str]:
    mlflow, sql = measured["mlflow"], measured["postgresql"]
    errors = [error for part in ("mlflow", *DATABASES) for error in measured[part]["errors"]]
    stored = [
        f"{measured[key]['adapters']:,} adapters and {measured[key]['answers']:,} answers in {name}" for key, name in DATABASES.items()
    ]
    rows: list[tuple[str, ...]] = []
    for key, name in DATABASES.items():
        f = measured[key]
        writes = [
            ("a dialogue, saved with its data set", f["dialogues"], f["save_dataset"]["cpu_seconds"], f["save_dataset"]["seconds"]),
            ("an adapter's row, saved alone", f["personas"], f["adapters_cpu_seconds"], f["write"]["seconds"]),
            (f"an answer with its {SCORES} scores", f["answers"], f["answers_cpu_seconds"], f["write"]["seconds"]),
            ("a dialogue, read", f["dialogues"], f["read_dataset"]["cpu_seconds"], f["read_dataset"]["seconds"]),
            ("an answer, read", f["read_answers_rows"], f["read_answers"]["cpu_seconds"], f["read_answers"]["seconds"]),
        ]
        rows += [(name, what, f"{n:,}", f"{1000 * cpu / n:.3f}", f"{seconds:.1f}") for what, n, cpu, seconds in writes]
    n_points = mlflow["runs"] * mlflow["points_per_run"]
    cost = f"{1000 * mlflow['cpu_seconds'] / n_points:.3f}"
    rows.append(("MLflow", "a point of a curve, logged", f"{n_points:,}", cost, f"{mlflow['seconds']:.1f}"))
    return [
        "# Scale",
        "",
        "Measured by `make load`; every figure is in `scale.json`.",
        "",
        "## Measured",
        "",
        f"{sql['writers']} processes write at once: the adapters of {sql['personas']:,} personas one by one, as trainings do, and",
        f"{sql['rows_per_method']:,} answers per method, into a real PostgreSQL and into SQLite. Then {mlflow['runs']} processes log",
        f"{mlflow['points_per_run']:,} points each, every process into a run of its own on one MLflow server, and upload an adapter.",
        f"The machine had {measured['cores']} cores and a load of {measured['load_before']} before. Wall time depends on that load,",
        "so costs are the processor time of the writing processes, without the servers'.",
        "",
        markdown_table(
            ("where", "what", "how many", "processor ms each", "wall seconds in total"), rows, right=(False, False, True, True, True)
        ),
        "",
        f"Errors that reached a writer: {len(errors) or 'none'}{'' if not errors else ', the first: ' + errors[0]}. Read back afterwards:",
        f"{', '.join(stored)};",
        f"{mlflow['points_found']:,} points in MLflow. Adapters and answers were written by the same processes at the same time.",
        "",
        f"A persona with {DIALOGUES} dialogues takes {measured['bytes_per_persona'] / 1000:.0f} kB of memory in a data set.",
        "",
    ]


def _plan(measured: Mapping[str, Any], benchmarks: Path) -> list[str]:
    per_hour = _adapters_per_hour(benchmarks)
    f = measured["postgresql"]
    per_dialogue, per_adapter = f["save_dataset"]["cpu_seconds"] / f["dialogues"], f["adapters_cpu_seconds"] / f["personas"]
    per_answer = f["answers_cpu_seconds"] / f["answers"]
    hours = [
        ("write 50 dialogues per persona", DIALOGUES * MILLION, DIALOGUES * MILLION * per_dialogue / 3600, "writers"),
        ("record an adapter per persona", MILLION, MILLION * per_adapter / 3600, "writers"),
        (f"write {ITEMS} answers per persona and method", ITEMS * MILLION, ITEMS * MILLION * per_answer / 3600, "writers, per method"),
        *((f"train a persona's adapter, {name}", MILLION, MILLION / rate, "trainers") for name, rate in per_hour.items()),
    ]
    n_groups = -(-MILLION * NAME_BYTES // PARAMETER_BYTES)
    return [
        "## A million personas, on paper",
        "",
        f"From the costs above (PostgreSQL) and the training rates in [{benchmarks.stem}.md]({benchmarks.stem}.md).",
        "Hours are of one process; divide by the number of writers or trainers.",
        "",
        markdown_table(
            ("what", "how many", "hours", "shared by"),
            [(w, f"{n:,}", f"{h:,.1f}", of) for w, n, h, of in hours],
            right=(False, True, True, False),
        ),
        "",
        _WORDS.format(
            parameters=PARAMETER_BYTES // 1000,
            shards=n_groups,
            memory=f"{measured['bytes_per_persona'] * MILLION / 1e9:,.0f}",
            adapter=ADAPTER_BYTES // 1000,
            weights=f"{ADAPTER_BYTES * MILLION / 1e9:,.0f}",
        ),
    ]


def _adapters_per_hour(benchmarks: Path) -> dict[str, float]:
    """Return clusterlora's measured training rate by model and dtype."""
    if not benchmarks.is_file():
        return {}
    rows = json.loads(benchmarks.read_text(encoding="utf-8"))["rows"]
    return {row["name"].removeprefix("training "): row["ours"] for row in rows if row["name"].startswith("training ")}
