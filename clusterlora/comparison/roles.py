"""The role of each method in a comparison: one that can win, the base model, or a control."""

from clusterlora.methods import METHODS

BASELINE = "baseline"
"""The base model without an adapter: tested against the reference, but not adapted, so it cannot win."""
SAME_GROUPS_AT_RANDOM = {"cluster": "random_cluster"}
"""By method with one adapter per group, the control with random groups that is otherwise the same; personalisation is claimed only
if the method beats it."""


def is_control(method: str) -> bool:
    """Return whether the method is a control, which explains the gain of another method and is never deployed."""
    return method in METHODS and METHODS[method].is_control


def can_win(method: str) -> bool:
    """Return whether the method can be champion: it is neither a control nor the base model."""
    return method != BASELINE and not is_control(method)


def contrasts() -> tuple[tuple[str, str], ...]:
    """Return (method, control) for every control in the catalog that names the method it controls, in catalog order."""
    return tuple((method.contrast_with, name) for name, method in METHODS.items() if method.contrast_with is not None)
