"""docs/gpu.md: the prose beside this module, and tables of the results file. Every figure has its command, card and revision."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu import peers, results
from benchmarks.gpu.results import FILE, Record
from clusterlora.durable import write_durably
from clusterlora.evaluation.markdown import markdown_table

_PROSE = Path(__file__).with_name("prose.md")
"""What is written by hand, with a place for the measurements."""


def write(folder: Path) -> None:
    """Write gpu.md into the folder that holds the results."""
    write_durably(folder / "gpu.md", page(folder / FILE).encode())


def page(file: Path) -> str:
    """Return the page of a results file."""
    records = results.read(file)
    sections = list(_tables(records))
    if absent := list(_absent(records)):
        sections += ["### Not measured", "\n".join(absent)]
    sections += ["### Runs", _how(records)]
    measurements = "\n\n".join(section.rstrip() for section in sections)
    return _PROSE.read_text(encoding="utf-8").replace("{measurements}", measurements)


def _tables(records: Mapping[str, Record]) -> Iterator[str]:
    if "card" in records:
        yield _card(records["card"])
    together = [record for record in records.values() if _figures([record], "share_in_passes")]
    if together:
        yield "### Adapters trained together"
        yield _together(together)
        yield _sources(together)
    for title, figure, render in (
        ("One adapter alone", "ms_per_step", _alone),
        ("Thousands of adapters in one call", "ms_per_adapter", _many),
        ("Answers of adapters mixed in one batch", "answers_per_second", _answers),
    ):
        measured = [record for record in records.values() if _figures([record], figure)]
        if measured:
            yield f"### {title}"
            yield render(_figures(measured, figure))
            yield _sources(measured)


def _card(record: Record) -> str:
    (row,) = record.rows
    settings = record.settings
    return (
        f"The card of these figures, {_name(record)}, multiplied matrices ({settings['matrices']}) at {row['tflops_per_second']:.0f} "
        f"TFLOP/s and copied {settings['copied_gib']:.0f} GiB at {row['copied_gb_per_second'] / 1000:.2f} TB/s, read and written."
    )


def _together(records: Sequence[Record]) -> str:
    ours = {record.part: row for record, row in _figures(records, "share_in_passes") if _beside(record) == record.part}
    # Peers stand below what they are compared with, whatever the order of measuring.
    ordered = sorted(
        _figures(records, "share_in_passes"), key=lambda pair: list(ours).index(_beside(pair[0])) if _beside(pair[0]) in ours else 99
    )
    header = ("model", "", "adapters/h", "ratio", "tokens/s", "share of the card", "in passes", "ms per pass", "beside passes, s")
    cells = []
    for record, row in ordered:
        reference = ours.get(_beside(record))
        ratio = (
            "" if _beside(record) == record.part or reference is None else _times(reference["adapters_per_hour"] / row["adapters_per_hour"])
        )
        base = "" if record.settings["base"] == "bfloat16" else f", base in {record.settings['base']}"
        n = record.settings["adapters"]
        cells.append(
            (
                f"{record.settings['model']}{base}, {record.settings['lengths']}",
                row["contender"] + (f", {n} together" if n > 1 else ", one by one"),
                f"{row['adapters_per_hour']:,.0f}",
                ratio,
                f"{row['tokens_per_second']:,.0f}",
                f"{row['share_of_matrix_rate']:.1%}",
                f"{row['share_in_passes']:.1%}",
                f"{row['ms_per_pass']:.1f}",
                f"{row['seconds_of_the_rest']:.2f}",
            )
        )
    return markdown_table(header, cells, right=(False, False, True, True, True, True, True, True, True))


def _alone(figures: Sequence[tuple[Record, Mapping[str, Any]]]) -> str:
    cells = [
        (
            record.settings["model"],
            f"{row['ms_per_step']:.2f}",
            f"{row['ms_per_step_at_first']:.2f}",
            f"{row['tokens_per_second']:,.0f}",
            f"{row['share_of_matrix_rate']:.1%}",
        )
        for record, row in figures
    ]
    n = figures[0][0].settings["steps"]
    header = ("model", f"ms per step, last {n} of {3 * n}", f"first {n}", "tokens/s", "share of the card")
    return markdown_table(header, cells, right=(False, True, True, True, True))


def _many(figures: Sequence[tuple[Record, Mapping[str, Any]]]) -> str:
    cells = [
        (
            f"{record.settings['model']}, {record.settings['steps_per_adapter']} steps of two dialogues of {record.settings['lengths']}, "
            f"on {' and '.join(record.settings['target_modules'])}",
            row["contender"],
            f"{row['seconds']:.1f}",
            f"{row['ms_per_adapter']:.1f}",
            f"{row['cost_per_adapter_against_few']:.2f}" if "cost_per_adapter_against_few" in row else "1",
        )
        for record, row in figures
    ]
    return markdown_table(("model", "", "seconds", "ms per adapter", "cost"), cells, right=(False, False, True, True, True))


def _answers(figures: Sequence[tuple[Record, Mapping[str, Any]]]) -> str:
    cells = [
        (
            f"{record.settings['model']}, {record.settings['new_tokens']} new tokens",
            row["contender"],
            f"{row['answers_per_second']:,.1f}",
            f"{row['new_tokens_per_second']:,.0f}",
            f"{row['share_of_matrix_rate']:.2%}",
        )
        for record, row in figures
    ]
    return markdown_table(("model", "", "answers/s", "new tokens/s", "share of the card"), cells, right=(False, False, True, True, True))


def _figures(records: Sequence[Record], figure: str) -> list[tuple[Record, Mapping[str, Any]]]:
    """Return the lines that have a figure, each with its part."""
    return [(record, row) for record in records for row in record.rows if figure in row]


def _absent(records: Mapping[str, Record]) -> Iterator[str]:
    for record in records.values():
        if record.failed:
            yield f"- {record.part}: {record.failed}"
    reasons: dict[tuple[str, str], list[str]] = {}
    for record in records.values():
        for row in record.rows:
            if "missing" in row:
                reasons.setdefault((row["contender"], row["missing"]), []).append(record.part)
    for (contender, reason), parts in reasons.items():
        yield f"- {contender} ({', '.join(parts)}): {reason}"
    if left := [f"`{part}`" for part in results.FIGURES if part not in records]:
        yield f"- Parts that no run had time for yet, which `make bench-gpu` goes on with: {', '.join(left)}."
    yield from (f"- {peer}: {reason}" for peer, reason in peers.NOT_MEASURED.items())


def _times(ratio: float) -> str:
    return f"{ratio:.0f}x" if ratio >= 10 else f"{ratio:.1f}x"


def _sources(records: Sequence[Record]) -> str:
    """Return what figures were measured with: command, card, revision, day."""
    sources = dict.fromkeys(f"`{record.command}`, {_name(record)}, revision {record.revision}, {record.date}" for record in records)
    return f"({'; '.join(sources)})"


def _how(records: Mapping[str, Record]) -> str:
    """Return what every run measured, and with which versions."""
    parts_by_run: dict[str, list[str]] = {}
    for record in records.values():
        run = f"`{record.command}`, revision {record.revision}, {record.date}, {_name(record)}; {_versions(record)}"
        parts_by_run.setdefault(run, []).append(f"{record.part} {record.seconds:.0f} s")
    return "\n".join(f"- {run}: {', '.join(parts)}." for run, parts in parts_by_run.items())


def _versions(record: Record) -> str:
    return ", ".join(f"{name} {version}" for name, version in record.versions.items() if version != "not installed")


def _name(record: Record) -> str:
    card = record.card
    return f"{card['name']} ({card['memory_gib']} GiB, driver {card['driver']}, CUDA {card['cuda']})"


def _beside(record: Record) -> str:
    return record.part.removesuffix("-peers").removesuffix("-unsloth")
