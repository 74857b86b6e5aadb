"""Whether a refresh's champion moves: to what is shown to be better, or is not worse within the margin and knows more."""

from collections.abc import Sequence
from dataclasses import replace

from clusterlora.comparison.result import Comparison, PairedDifference
from clusterlora.comparison.sentence import format_difference
from clusterlora.evaluation.metrics import METRICS
from clusterlora.metadata import RefreshOutcome, Shift

_LACKS = {
    "floor": "is not shown to be better than the floor",
    "base model": "is not shown to beat the base model",
    "second headline": "is shown to be worse on the second headline",
}


def decide(new: Comparison, old: Comparison | None, method: str, earlier: Sequence[RefreshOutcome] = ()) -> RefreshOutcome:
    """Return whether the champion moves, from the comparison on new items and, against forgetting, that on old ones.

    Both hold the champion as it stands as their reference. `method` is the champion's own, trained on; another that is shown to be better
    takes its place. What is shown to be worse on either never moves the champion. What is not shown to be better moves it if the whole
    95 % interval lies above minus the margin, less what the moves of before may have cost: `earlier`, the oldest first.
    """
    better = new.champion if new.champion not in (None, new.reference) else None
    challenger = better or method
    on_new, on_old = _shift(new, challenger), _shift(old, challenger) if old else None
    moved, why = _decision(new, old, challenger, left=new.margin + may_have_cost(earlier, _sign(new)))
    return RefreshOutcome(moved=moved, challenger=challenger, reason=why, on_new=on_new, on_old=on_old)


def left_elsewhere(outcome: RefreshOutcome, where: str) -> RefreshOutcome:
    """Return the outcome of a refresh whose challenger does not get the alias, whatever its comparison says: somebody has moved it."""
    by_itself = f"its comparison would have moved it, as {outcome.reason}" if outcome.moved else outcome.reason
    return replace(outcome, moved=False, reason=f"{where}; {by_itself}", elsewhere=where)


def may_have_cost(moves: Sequence[RefreshOutcome], sign: float) -> float:
    """Return how much worse, at worst, the champion is for these moves: a sum of the worst ends of their intervals, at most 0.

    What a move has surely gained is counted against what others may have cost, but never saved up. As the sum stays above minus the
    margin, no champion is worse than any before it by more. `sign` is -1 if lower is better.
    """
    total = 0.0
    for move in moves:
        if move.on_new is not None:
            total = min(0.0, total + _worst(move.on_new, sign))
    return total


def _decision(new: Comparison, old: Comparison | None, challenger: str, *, left: float) -> tuple[bool, str]:
    difference = _difference(new, challenger)
    if difference is None or not new.has_verdict:
        return False, "too few new items of too few people for a verdict"
    for what, comparison in (("new", new), ("old", old)):
        if comparison is not None and (lost := _shown_loss(comparison, challenger)) is not None:
            return False, f"{challenger} is shown to be worse on {what} items ({format_difference(comparison, lost)})"
    if challenger in new.obstacles:
        return False, f"{challenger} {_LACKS[new.obstacles[challenger].reason]}"
    if challenger == new.champion:
        return True, f"{challenger} is shown to be better on new items"
    metric, shown = METRICS[new.headline], format_difference(new, difference)
    margin = metric.difference(new.margin, signed=False)
    if left <= 0:
        return False, f"{challenger} is not shown to be better ({shown}), and the moves of before may have cost the margin of {margin}"
    rest = metric.difference(left, signed=False)
    within = rest if left == new.margin else f"{rest}, what the moves of before have left of {margin},"
    if min(_sign(new) * end for end in (difference.ci_low, difference.ci_high)) > -left:
        return True, f"{challenger} is not worse by {within} ({shown}) and has learnt from fresher dialogues"
    return False, f"that {challenger} is not worse by {within} is not shown ({shown})"


def _shown_loss(comparison: Comparison, challenger: str) -> PairedDifference | None:
    """Return the difference to the champion where its whole interval is a loss and people and items are enough for a verdict."""
    difference = _difference(comparison, challenger)
    if difference is None or not comparison.has_verdict:
        return None
    return difference if max(_sign(comparison) * end for end in (difference.ci_low, difference.ci_high)) < 0 else None


def _difference(comparison: Comparison, method: str) -> PairedDifference | None:
    return next((result.vs_reference for result in comparison.methods if result.method == method), None)


def _sign(comparison: Comparison) -> float:
    return 1.0 if METRICS[comparison.headline].higher_is_better else -1.0


def _worst(shift: Shift, sign: float) -> float:
    return min(sign * shift.ci_low, sign * shift.ci_high)


def _shift(comparison: Comparison, challenger: str) -> Shift | None:
    results = {result.method: result for result in comparison.methods}
    difference = _difference(comparison, challenger)
    if difference is None or comparison.reference is None:
        return None
    return Shift(
        champion=results[comparison.reference].means[comparison.headline],
        challenger=results[challenger].means[comparison.headline],
        difference=difference.mean,
        ci_low=difference.ci_low,
        ci_high=difference.ci_high,
        n_items=comparison.n_items,
        n_personas=comparison.n_personas,
    )
