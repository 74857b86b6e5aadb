"""The role of each method in a comparison, as its entry in METHODS says: one that can win, the base model, or a control."""

from collections.abc import Sequence

from clusterlora.methods import METHODS


def is_control(method: str) -> bool:
    """Return whether the method is a control, which explains the gain of another method and is never deployed."""
    return method in METHODS and METHODS[method].is_control


def is_base(method: str) -> bool:
    """Return whether the method is the base model without an adapter, which is tested against but cannot win."""
    return method in METHODS and METHODS[method].is_base


def can_win(method: str) -> bool:
    """Return whether the method can be champion: it is neither a control nor the base model."""
    return not is_base(method) and not is_control(method)


def contrasts() -> tuple[tuple[str, str], ...]:
    """Return (method, control) for every control in the catalog that names the method it controls, in catalog order."""
    return tuple((method.contrast_with, name) for name, method in METHODS.items() if method.contrast_with is not None)


def contrast_pairs(lead: str | None, methods: Sequence[str], reference: str | None) -> list[tuple[str, str]]:
    """Return (method, control) for every contrast of a comparison: the lead with all controls, other methods with their own.

    Args:
        lead: the champion, else the reference, which has none of its own.
    """
    present = [(method, control) for method, control in contrasts() if control in methods]
    named = (method for method in (lead, *(method for method, _ in present)) if method is not None)
    subjects = [method for method in dict.fromkeys(named) if method in methods and method != reference]
    return [(subject, control) for subject in subjects for method, control in present if subject in (lead, method)]


def deciding_control(method: str) -> str | None:
    """Return the control whose defeat shows why the method gains, the first in the catalog; None without one.

    Personalisation is claimed for a method only if it beats this control.
    """
    return next((name for name, control in METHODS.items() if control.contrast_with == method and control.cause), None)
