"""What each method is in a comparison: one that can win, the base model, or a control."""

from clusterlora.methods.method import CONTROLS

BASELINE = "baseline"
"""The bare base model: tested against the reference, but adapts to nobody, so it cannot win."""
QUESTION = "cluster"
"""The method the comparison asks about, whoever wins."""
SAME_GROUPS_AT_RANDOM = {"cluster": "random_cluster"}
"""By method that answers by groups, the control that groups by chance and is otherwise the same: what personalisation is claimed by."""
PHRASES = {
    "random_cluster": "a random partition of the same sizes",
    "unified_longer": "unified trained for the same steps",
    "unified_described": "unified with the persona's text in the prompt",
}
"""The controls that methods are contrasted with, in words."""


def is_control(method: str) -> bool:
    """Return whether the method says where the gain of another comes from; it answers nobody outside the comparison."""
    return method in CONTROLS


def can_win(method: str) -> bool:
    """Return whether the method could be champion: it is neither a control nor the base model."""
    return method != BASELINE and not is_control(method)
