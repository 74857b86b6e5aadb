"""Figure of a data set: dialogues per persona, their lengths, the splits, duplicates and leaks."""

# matplotlib leaves most keyword arguments untyped:
# pyrefly: ignore-errors[partially-unknown-type]

from itertools import pairwise
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import NullFormatter, StrMethodFormatter

from clusterlora.data.summary import DataSummary, Distribution
from clusterlora.drawing import write_png
from clusterlora.report.palette import mark

_INK = "#222222"
_BARS = "▁▂▃▄▅▆▇█"


def sparkline(counts: Distribution) -> str:
    """Return a distribution as a line of block characters; a bin with any count is never blank."""
    highest = max(counts.bins, default=0)
    return "".join(_BARS[max(0, -(-n * len(_BARS) // highest) - 1)] if n else " " for n in counts.bins)


def draw_data(summary: DataSummary, path: Path, title: str) -> None:
    """Write the picture as PNG, atomically."""
    write_png(lambda: compose_data(summary, title), path)


def compose_data(summary: DataSummary, title: str) -> Figure:
    """Return three histograms and, in the fourth panel, the number of dialogues per split, duplicated and leaked."""
    figure = Figure(figsize=(9.0, 6.0), dpi=100, layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))
    FigureCanvasAgg(figure)
    figure.suptitle(
        f"{title}: {summary.personas} personas, {summary.dialogues} dialogues, {summary.examples} examples", color=_INK, parse_math=False
    )
    (per_persona, dialogues), (responses, splits) = figure.subplots(2, 2)
    _distribution(per_persona, summary.dialogues_per_persona, "dialogues per persona", "personas")
    _distribution(dialogues, summary.dialogue_characters, "characters per dialogue", "dialogues")
    _distribution(responses, summary.response_characters, "characters per response", "responses")
    bars = {
        "train": summary.train,
        "val": summary.val,
        "test": summary.test,
        "duplicates": summary.duplicates,
        "leaks": summary.leaks,
    }
    colours = [mark(0).colour] * 3 + [mark(3).colour] * 2
    containers = splits.bar(list(bars), list(bars.values()), color=colours)
    splits.bar_label(containers, color=_INK)
    splits.set_ylabel("dialogues")
    splits.spines[["top", "right"]].set_visible(False)
    return figure


def _distribution(axes: Any, counts: Distribution, x_label: str, y_label: str) -> None:
    widths = [end - start for start, end in pairwise(counts.edges)]
    axes.bar(counts.edges[:-1], counts.bins, width=widths, align="edge", color=mark(0).colour, edgecolor="white", linewidth=0.5)
    axes.axvline(counts.median if counts.logarithmic else counts.median + 0.5, color=mark(3).colour)
    axes.set_xlabel(f"{x_label} (median {counts.median}){', logarithmic' if counts.logarithmic else ''}")
    axes.set_ylabel(y_label)
    axes.locator_params(axis="y" if counts.logarithmic else "both", integer=True)
    if counts.logarithmic:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.spines[["top", "right"]].set_visible(False)
