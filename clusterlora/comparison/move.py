"""Whether a refresh's champion moves: to what is shown to be better, or is not worse within the margin and knows more."""

from clusterlora.comparison.result import Comparison
from clusterlora.comparison.sentence import format_difference
from clusterlora.evaluation.metrics import METRICS
from clusterlora.metadata import RefreshOutcome, Shift


def decide(new: Comparison, old: Comparison | None, method: str) -> RefreshOutcome:
    """Return whether the champion moves, from the comparison on new items alone; that on old ones is told beside it.

    Both hold the champion as it stands as their reference. `method` is the champion's own, trained on; another that is shown to be better
    takes its place. What is not shown to be better moves the champion if the whole 95 % interval lies above minus the margin: its data
    are fresher.
    """
    better = new.champion if new.champion not in (None, new.reference) else None
    challenger = better or method
    on_new = _shift(new, challenger)
    difference = next(result.vs_reference for result in new.methods if result.method == challenger)
    if on_new is None or difference is None or not new.has_verdict:
        moved, why = False, "too few new items of too few people for a verdict"
    elif better:
        moved, why = True, f"{challenger} is shown to be better on new items"
    elif new.no_champion is not None and new.no_champion.reason in ("floor", "second headline", "base model"):
        moved, why = False, f"{challenger} does not meet what every champion must"
    else:
        worst = min(_sign(new) * end for end in (on_new.ci_low, on_new.ci_high))
        moved = worst > -new.margin
        within = METRICS[new.headline].difference(new.margin, signed=False)
        shown = format_difference(new, difference)
        why = (
            f"{challenger} is not worse by {within} ({shown}) and has learnt from fresher dialogues"
            if moved
            else f"that {challenger} is not worse by {within} is not shown ({shown})"
        )
    return RefreshOutcome(moved=moved, challenger=challenger, reason=why, on_new=on_new, on_old=_shift(old, challenger) if old else None)


def _sign(comparison: Comparison) -> float:
    return 1.0 if METRICS[comparison.headline].higher_is_better else -1.0


def _shift(comparison: Comparison, challenger: str) -> Shift | None:
    results = {result.method: result for result in comparison.methods}
    difference = results[challenger].vs_reference if challenger in results else None
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
