"""What each method is in a comparison: one that can win, the base model, or a control."""

from clusterlora.methods import METHODS

BASELINE = "baseline"
"""The bare base model: tested against the reference, but adapts to nobody, so it cannot win."""
SAME_GROUPS_AT_RANDOM = {"cluster": "random_cluster"}
"""By method that answers by groups, the control that groups by chance and is otherwise the same: what personalisation is claimed by."""


def is_control(method: str) -> bool:
    """Return whether the method says where the gain of another comes from; it answers nobody outside the comparison."""
    return method in METHODS and METHODS[method].is_control


def can_win(method: str) -> bool:
    """Return whether the method could be champion: it is neither a control nor the base model."""
    return method != BASELINE and not is_control(method)


def contrasts() -> tuple[tuple[str, str], ...]:
    """Return (method, what its gain is held against) of every entry that says so, in the catalog's order."""
    return tuple((method.contrast_with, name) for name, method in METHODS.items() if method.contrast_with is not None)
