"""Colours and markers that distinguish clusters on light and dark backgrounds, in the report and in the cluster map."""

from typing import NamedTuple


class Mark(NamedTuple):
    """How a cluster is drawn: a colour, plotly's `symbol` and matplotlib's `marker`."""

    colour: str
    symbol: str
    marker: str


# Okabe & Ito's palette without black and yellow, which vanish on one of the backgrounds.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#8C7A5B")
_SHAPES = (
    ("circle", "o"),
    ("square", "s"),
    ("diamond", "D"),
    ("triangle-up", "^"),
    ("cross", "P"),
    ("x", "X"),
    ("star", "*"),
    ("pentagon", "p"),
)


def mark(cluster: int) -> Mark:
    """Return the mark of a cluster: 7 colours with 8 shapes, so up to 56 clusters are distinct."""
    return Mark(_COLOURS[cluster % len(_COLOURS)], *_SHAPES[cluster % len(_SHAPES)])
