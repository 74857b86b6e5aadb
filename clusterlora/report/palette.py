"""Colours and marks that tell clusters apart, on light and dark ground, on the page and in the picture."""

from typing import NamedTuple


class Mark(NamedTuple):
    """How a cluster is drawn: a colour, and its mark as plotly and as matplotlib call it."""

    colour: str
    symbol: str
    marker: str


# Okabe & Ito's palette without black and yellow, which vanish on one of the grounds.
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
    """Return the mark of a cluster: 7 colours with 8 shapes, so that no two of 56 clusters are alike."""
    return Mark(_COLOURS[cluster % len(_COLOURS)], *_SHAPES[cluster % len(_SHAPES)])
