"""Draws comprehensive_comparison.png: every method's mean, its spread over personas, and its mean in every cluster."""

# matplotlib leaves most keyword arguments untyped:
# pyrefly: ignore-errors[partially-unknown-type, unknown-argument-type, unknown-variable-type]

import textwrap
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from clusterlora.comparison.result import Comparison, MethodResult, PairedDifference, ShownOutcome
from clusterlora.comparison.sentence import OUTCOMES, heading
from clusterlora.comparison.table import cut_legend, marks
from clusterlora.drawing import write_png
from clusterlora.evaluation.metrics import METRICS

# Okabe & Ito's palette, distinguishable with every common kind of colour vision.
_REFERENCE_COLOUR = "#E69F00"
_CHAMPION_COLOUR = "#0072B2"
_OTHER_COLOUR = "#8FA1AE"
_INK = "#222222"
_MOST_CLUSTERS_WITH_NUMBERS = 10
_MARKS: dict[ShownOutcome, str] = {"better": "▲", "worse": "▼", "equivalent": "≈", "undecided": "?"}
_WORSE_THAN_FLOOR = "///"
_LEGEND_CHARACTERS = 105
"""Characters of a line under the first panel."""
_TITLE_PAD = 38
"""Points between panel and title, room for two lines of labels."""


def draw(comparison: Comparison, path: Path, title: str) -> None:
    """Write the figure as PNG, atomically."""
    write_png(lambda: compose(comparison, title), path)


def compose(comparison: Comparison, title: str) -> Figure:
    """Return the figure, one row per method, best on top: mean with 95 % interval, personas, clusters."""
    n_methods = len(comparison.methods)
    widths_inches = (8.2, 4.6, 1.5 + 0.6 * min(len(comparison.cluster_sizes), _MOST_CLUSTERS_WITH_NUMBERS))
    width_inches = sum(widths_inches)
    lines = [title, *textwrap.wrap(heading(comparison), int(10.4 * width_inches))]
    height_inches = 2.6 + 0.22 * len(lines) + 0.5 * n_methods
    figure = Figure(figsize=(width_inches, height_inches), dpi=120, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.08))
    FigureCanvasAgg(figure)
    # Names are data and may contain $, which must not start math mode.
    figure.suptitle("\n".join(lines), fontsize=12.5, color=_INK, parse_math=False)
    panels = figure.subplots(1, 3, width_ratios=widths_inches)
    _draw_means(panels[0], comparison)
    _draw_personas(panels[1], comparison)
    _draw_clusters(panels[2], comparison)
    for axes in panels:
        axes.set_ylim(n_methods - 0.5, -0.5)
        axes.set_yticks(range(n_methods), [""] * n_methods)
        axes.tick_params(axis="y", length=0)
        axes.spines[["top", "right", "left"]].set_visible(False)
    _label_methods(panels[0], comparison)
    return figure


def _colour(comparison: Comparison, result: MethodResult) -> str:
    if result.method == comparison.reference:
        return _REFERENCE_COLOUR
    return _CHAMPION_COLOUR if result.method == comparison.champion else _OTHER_COLOUR


def _label_methods(axes: Axes, comparison: Comparison) -> None:
    labels = [result.method + marks(comparison, result.method) for result in comparison.methods]
    for label, result in zip(axes.set_yticklabels(labels, fontsize=11, parse_math=False), comparison.methods, strict=True):
        label.set_fontweight("bold" if result.method in (comparison.champion, comparison.reference) else "normal")


def _draw_means(axes: Axes, comparison: Comparison) -> None:
    """Draw means with intervals. Bars start at `bar_start`; those of methods worse than the floor are hatched."""
    metric = METRICS[comparison.headline]
    scale = 100 if metric.percent else 1
    start = scale * comparison.bar_start
    # The floor too: a label far outside the panel leaves no room for it.
    lines = [start, scale * comparison.ceiling, *([] if comparison.floor is None else [scale * comparison.floor])]
    right = max(scale * comparison.oracle, *lines, *(scale * result.mean_high for result in comparison.methods))
    left = min(*lines, *(scale * result.mean_low for result in comparison.methods))
    if left == right:  # all score the same, without an interval
        right += 1
    for row, result in enumerate(comparison.methods):
        mean, low, high = scale * result.means[comparison.headline], scale * result.mean_low, scale * result.mean_high
        hatch = _WORSE_THAN_FLOOR if comparison.is_worse_than_floor(result) else None
        axes.barh(row, mean - start, left=start, height=0.62, color=_colour(comparison, result), hatch=hatch, edgecolor="w", lw=0)
        axes.plot([low, high], [row, row], color=_INK, linewidth=1.8, solid_capstyle="butt")
        axes.annotate(metric.format(result.means[comparison.headline]), (right, row), (12, 0), textcoords="offset points", va="center")
        if result.vs_reference:
            difference = _difference(comparison, result.vs_reference)
            axes.annotate(difference, (1, row), xycoords=("axes fraction", "data"), ha="right", va="center")
    # The axis ends with the bars; columns of numbers follow on the right.
    axes.set_xlim(left - 0.01 * (right - left), right + (0.72 if comparison.reference else 0.2) * (right - left))
    axes.set_xticks([tick for tick in axes.get_xticks() if left <= tick <= right])
    axes.spines["bottom"].set_bounds(left, right)
    _draw_scale(axes, comparison, width=right - left)
    _draw_brackets(axes, comparison)
    axes.set_title("Mean over personas with 95% interval", fontsize=11, pad=_TITLE_PAD, loc="left")
    if comparison.reference:
        axes.annotate(
            f"difference to {comparison.reference}",
            (1, 1),
            (0, 4),
            xycoords="axes fraction",
            textcoords="offset points",
            ha="right",
        )
    brackets = "" if comparison.routing is None else f"\n├─┤ {comparison.routing.method} with a blind and with a perfect choice"
    axes.set_xlabel("\n".join(filter(None, (_axis_label(comparison) + brackets, _legend(comparison)))))


def _legend(comparison: Comparison) -> str:
    """Return the legend of the outcome marks, the hatching and the daggers that occur."""
    outcomes = {result.vs_reference.outcome for result in comparison.methods if result.vs_reference} if comparison.has_verdict else set()
    legends = ["  ".join(f"{_MARKS[outcome]} {words}" for outcome, words in OUTCOMES.items() if outcome in outcomes)]
    if any(comparison.is_worse_than_floor(result) for result in comparison.methods):
        legends.append(f"hatched: worse than the floor, {METRICS[comparison.headline].floor_is}")
    if comparison.floor is not None and not comparison.has_room:
        legends.append("no room between floor and ceiling")
    legends += textwrap.wrap(cut_legend(comparison), _LEGEND_CHARACTERS)
    # A line each: the layout has no room for a label much wider than its panel.
    return "\n".join(filter(None, legends))


def _draw_scale(axes: Axes, comparison: Comparison, *, width: float) -> None:
    """Draw floor, oracle and ceiling with labels above the panel; the ceiling, which is near the oracle, is labelled on a second line."""
    metric = METRICS[comparison.headline]
    scale = 100 if metric.percent else 1
    sides = {"floor": "left", "oracle": "center"}
    if comparison.floor is not None and scale * abs(comparison.oracle - comparison.floor) < 0.3 * width:
        # Close together: align the labels away from each other.
        above = comparison.oracle >= comparison.floor
        sides = {"floor": "right" if above else "left", "oracle": "left" if above else "right"}
    for name, value, line in (("floor", comparison.floor, 4), ("oracle", comparison.oracle, 4), ("ceiling", comparison.ceiling, 20)):
        if value is None:
            continue
        axes.axvline(scale * value, color=_INK, linestyle=(0, (4, 3)), linewidth=1.2, zorder=0)
        axes.annotate(
            f"{name} {metric.format(value)}",
            (scale * value, 1),
            (0, line),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha=sides.get(name, "center"),
        )


def _draw_brackets(axes: Axes, comparison: Comparison) -> None:
    """Draw the scores of a random and of a perfect choice among the other methods, below the bar of the routed method."""
    if comparison.routing is None:
        return
    scale = 100 if METRICS[comparison.headline].percent else 1
    row = [result.method for result in comparison.methods].index(comparison.routing.method) + 0.4
    ends = sorted((scale * comparison.routing.random, scale * comparison.routing.oracle))
    axes.plot(ends, [row, row], color=_INK, linewidth=1.0, marker="|", markersize=7)


def _difference(comparison: Comparison, difference: PairedDifference) -> str:
    metric = METRICS[comparison.headline]
    if not comparison.has_verdict:
        return metric.format(difference.mean, signed=True)
    mean, low, high = (metric.format(value, signed=True) for value in (difference.mean, difference.ci_low, difference.ci_high))
    return f"{mean} [{low}, {high}] {_MARKS[difference.outcome]}"


def _draw_personas(axes: Axes, comparison: Comparison) -> None:
    """Draw a dot per persona, spread evenly within its row, and a bar from the 5th to the 95th percentile around the median."""
    scale = 100 if METRICS[comparison.headline].percent else 1
    golden_ratio = 0.6180339887
    for row, result in enumerate(comparison.methods):
        scores = scale * np.array(list(result.by_persona.values()))
        offsets = (np.arange(len(scores)) * golden_ratio % 1 - 0.5) * 0.6
        axes.scatter(scores, row + offsets, s=9, color=_colour(comparison, result), alpha=0.65, linewidths=0)
        low, median, high = np.percentile(scores, [5, 50, 95])
        axes.plot([low, high], [row, row], color=_INK, linewidth=1.8, solid_capstyle="butt")
        axes.plot(median, row, marker="o", markersize=6, markerfacecolor="white", markeredgecolor=_INK)
    axes.grid(axis="x", color="#DDDDDD", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.set_title("Every persona; median and 5th to 95th percentile", fontsize=11, pad=_TITLE_PAD)
    axes.set_xlabel(_axis_label(comparison))


def _draw_clusters(axes: Axes, comparison: Comparison) -> None:
    """Draw means as numbers and the difference to the reference in the same cluster as colour (without a reference, the mean)."""
    metric = METRICS[comparison.headline]
    scale = 100 if metric.percent else 1
    clusters = list(comparison.cluster_sizes)
    means = np.array([[result.by_cluster[cluster] for cluster in clusters] for result in comparison.methods])
    if comparison.reference is None:
        shades, norm, colours = scale * means, Normalize(), "cividis"
    else:
        shades = scale * (means - np.array([comparison.method(comparison.reference).by_cluster[cluster] for cluster in clusters]))
        # The scale ignores outliers: one method far below the rest would make all other differences pale.
        limit = max(float(np.quantile(np.abs(shades), 0.6)), 0.01)
        norm, colours = Normalize(-limit, limit), "RdBu"
    colour_map = colormaps[colours if metric.higher_is_better else f"{colours}_r"]
    image = axes.imshow(shades, aspect="auto", cmap=colour_map, norm=norm)
    if len(clusters) <= _MOST_CLUSTERS_WITH_NUMBERS:
        for row, column in np.ndindex(means.shape):
            red, green, blue, _ = colour_map(norm(shades[row, column]))
            ink = "white" if 0.299 * red + 0.587 * green + 0.114 * blue < 0.5 else _INK
            axes.text(column, row, metric.format(float(means[row, column])), ha="center", va="center", fontsize=9, color=ink)
    axes.set_xticks(range(len(clusters)), [f"{cluster}\n({comparison.cluster_sizes[cluster]})" for cluster in clusters])
    axes.set_xlabel("cluster (personas)")
    axes.set_title("Mean in every cluster", fontsize=11, pad=_TITLE_PAD)
    label = f"difference to {comparison.reference}" if comparison.reference else _axis_label(comparison)
    axes.figure.colorbar(image, ax=axes, label=label, extend="both" if comparison.reference else "neither", pad=0.03)


def _axis_label(comparison: Comparison) -> str:
    metric = METRICS[comparison.headline]
    direction = "" if metric.higher_is_better else ", lower is better"
    return f"{metric.label}{' (%)' if metric.percent else ''}{direction}"
