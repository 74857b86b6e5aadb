"""The results as files: benchmarks.json for machines, benchmarks.md for people."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure import Speedup
from benchmarks.scaling import ScalingPoint
from clusterlora.durable import write_durably
from clusterlora.errors import BadSettings
from clusterlora.evaluation.markdown import markdown_table


@dataclass(frozen=True, slots=True)
class Results:
    """All results of one run of the benchmarks."""

    command: str
    minutes: float
    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    peak_gflops_per_second: Mapping[str, float]
    rows: Sequence[Speedup]
    scaling: Sequence[ScalingPoint]
    skipped: Sequence[str]


_READING = """\
A ratio above 1 means that clusterlora is that many times faster; it is the median over the repetitions, and the range has the smallest
and the largest. Contenders take turns in one process, each ratio is taken between runs next to each other in time, and warm-up is not
timed. Both sides get the same rows, batches, number of steps, learning rates, dtype, threads and device. MFU is the share of the
machine's measured matrix-product rate that goes into necessary operations: no padding, no gradients of frozen weights, and the
vocabulary projection only where a token is predicted.

- **Training** is measured per finished adapter of the mission's study (30 dialogues, 3 epochs, batches of 2, rank 8 on all linear
  layers, loss on the assistant's tokens), saved as a PEFT folder. Where fewer steps were measured, the others are extrapolated at the
  same rate, and time spent outside the steps (building, saving) is counted once. Peers run with their fastest sensible settings, in
  bfloat16 with or without autocast, whichever was faster in warm-up.
- **Generation** is greedy; every item is answered by its own adapter, and adapters are loaded beforehand. With "x8" every adapter
  answers eight items, which PEFT does in one batch per adapter; with "described" the prompts say who the persona is."""


def read(folder: Path) -> Results | None:
    """Return the results of an earlier run in a folder; None when there are none."""
    file = folder / "benchmarks.json"
    return _parsed(file.read_text(encoding="utf-8")) if file.is_file() else None


def _parsed(text: str) -> Results:
    fields = json.loads(text)
    rows, points = [Speedup(**row) for row in fields.pop("rows")], [ScalingPoint(**point) for point in fields.pop("scaling")]
    return Results(**fields, rows=rows, scaling=points)


def joined(earlier: Results, current: Results) -> Results:
    """Return the results of both runs; where both measured the same, the current ones.

    Raises:
        BadSettings: machine or versions differ.
    """
    for name in ("processor", "instructions", "cores", "threads", "device"):
        _refuse_other(name, earlier.machine.get(name), current.machine.get(name))
    for name, version in current.versions.items():
        if name != "revision":
            _refuse_other(name, earlier.versions.get(name), version)
    measured = {row.name for row in current.rows} | {point.what for point in current.scaling}
    skipped = [
        line for line in earlier.skipped if not any(line.startswith(f"{name}:") for name in measured) and line not in current.skipped
    ]
    return Results(
        command=f"{earlier.command}; {current.command}",
        minutes=earlier.minutes + current.minutes,
        machine=current.machine,
        versions=current.versions,
        peak_gflops_per_second={**earlier.peak_gflops_per_second, **current.peak_gflops_per_second},
        rows=[*(row for row in earlier.rows if row.name not in measured), *current.rows],
        scaling=[*(point for point in earlier.scaling if point.what not in measured), *current.scaling],
        skipped=[*skipped, *current.skipped],
    )


def _refuse_other(name: str, earlier: object, current: object) -> None:
    if earlier != current:
        raise BadSettings(f"{name} was {earlier} in the run to add to and is {current} here; leave out --add, or give another --out")


def write(results: Results, folder: Path) -> None:
    """Write benchmarks.json and benchmarks.md into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write_durably(folder / "benchmarks.json", (json.dumps(as_json(results), indent=1, ensure_ascii=False) + "\n").encode())
    write_durably(folder / "benchmarks.md", page(folder / "benchmarks.json").encode())


def page(file: Path) -> str:
    """Return the Markdown page of a results file."""
    return as_markdown(_parsed(file.read_text(encoding="utf-8")), file.name)


def as_json(results: Results) -> dict[str, Any]:
    return {
        "command": results.command,
        "minutes": round(results.minutes, 1),
        "machine": dict(results.machine),
        "versions": dict(results.versions),
        "peak_gflops_per_second": {dtype: round(rate, 1) for dtype, rate in results.peak_gflops_per_second.items()},
        "rows": [row.as_json() for row in results.rows],
        "scaling": [point.as_json() for point in results.scaling],
        "skipped": list(results.skipped),
    }


def as_markdown(results: Results, file: str = "benchmarks.json") -> str:
    """Return the Markdown page: how to read it, ratios, scaling, machine, commands.

    Args:
        file: name of the results file, which has all settings.
    """
    device = results.machine.get("gpu") or f"a CPU with {results.machine['instructions']}"
    sections = [
        f"# Benchmarks on {device}",
        f"Measured by `make bench` in {results.minutes:.0f} minutes; all settings are in `{file}`.",
        _READING,
        "## clusterlora against its peers",
        _ratio_table(results.rows),
    ]
    if results.scaling:
        sections += [
            "## Scaling",
            "Rates are extrapolated to adapters of 45 steps; memory is the most that the run added to the process.",
            _scaling_table(results.scaling),
        ]
    if results.skipped:
        sections += ["## Not measured", "\n".join(f"- {reason}" for reason in results.skipped)]
    facts = {
        **results.machine,
        **{f"{dtype} matrix products": f"{rate:.0f} GFLOP/s" for dtype, rate in results.peak_gflops_per_second.items()},
    }
    facts |= results.versions
    sections += [
        "## Machine and versions",
        markdown_table(("", ""), [(name.replace("_", " "), str(value)) for name, value in facts.items()], right=(False, False)),
        "## Commands",
        "\n".join(["```sh", *results.command.split("; "), "```"]),
    ]
    return "\n\n".join(section.rstrip() for section in sections) + "\n"


def _ratio_table(rows: Sequence[Speedup]) -> str:
    header = ("what", "baseline", "ratio", "range", "ours", "theirs", "unit", "MFU ours", "MFU theirs", "same answers", "repetitions")
    cells = [
        (
            row.name,
            row.baseline,
            f"{row.ratio_median:.2f}x",
            f"{row.ratio_min:.2f} to {row.ratio_max:.2f}",
            _rate(row.ours),
            _rate(row.theirs),
            row.unit,
            f"{row.mfu_ours:.0%}",
            f"{row.mfu_theirs:.0%}",
            f"{row.facts['identical_answers']:.0%}" if "identical_answers" in row.facts else "",
            str(row.repetitions),
        )
        for row in rows
    ]
    return markdown_table(header, cells, right=(False, False, True, True, True, True, False, True, True, True, True))


def _scaling_table(points: Sequence[ScalingPoint]) -> str:
    cells = [
        (
            point.what,
            str(point.n),
            _rate(point.rate),
            point.unit,
            f"{point.seconds:.1f}",
            f"{point.added_mib:.0f}",
            "" if point.mfu is None else f"{point.mfu:.0%}",
        )
        for point in points
    ]
    return markdown_table(
        ("what", "n", "rate", "unit", "seconds", "MiB added", "MFU"), cells, right=(False, True, True, False, True, True, True)
    )


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
