"""clusters.png: every persona in the plane of largest variance, coloured by cluster."""

# matplotlib leaves most keyword arguments untyped:
# pyrefly: ignore-errors[partially-unknown-type]

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from clusterlora.drawing import write_png
from clusterlora.report.palette import mark
from clusterlora.values import Clustering

_INK = "#222222"


def draw_map(clustering: Clustering, path: Path, title: str) -> None:
    """Write the map as PNG, atomically."""
    write_png(lambda: compose_map(clustering, title), path)


def compose_map(clustering: Clustering, title: str) -> Figure:
    """Return the figure: cluster sizes in the legend, silhouette and stability in the caption."""
    figure = Figure(figsize=(7.6, 6.0), dpi=110, layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    position = {persona_id: (x, y) for persona_id, x, y in clustering.map_2d}
    for cluster, members in enumerate(clustering.members):
        points = [position[persona_id] for persona_id in members if persona_id in position]
        style = mark(cluster)
        axes.scatter(
            [x for x, _ in points],
            [y for _, y in points],
            s=52,
            color=style.colour,
            marker=style.marker,
            edgecolors="white",
            linewidths=0.6,
            label=f"{cluster} ({len(members)})",
        )
    axes.set_title(f"{title}: {sum(clustering.sizes)} personas by {clustering.algorithm}", fontsize=12, color=_INK, parse_math=False)
    axes.set_xlabel("first principal component\n" + caption(clustering), parse_math=False)
    axes.set_ylabel("second principal component")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(title="cluster (personas)", loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    return figure


def caption(clustering: Clustering) -> str:
    """Return the share of the largest cluster and the quality measures of the partition on one line."""
    largest = f"largest {max(clustering.sizes) / sum(clustering.sizes):.0%}"
    return ", ".join([largest, *(_measure(name, value) for name, value in clustering.quality)])


def _measure(name: str, value: float) -> str:
    return f"{name.replace('_', ' ')} {100 * value:.2f} %" if name == "predicted" else f"{name.replace('_', ' ')} {value:.2f}"
