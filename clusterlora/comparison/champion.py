"""Which method is champion, or why there is none.

A champion is shown to beat the reference, or is the reference; it is shown to beat the base model, where that was compared; and its
interval lies beyond the floor, what somebody else's reference scores or a uniform guess, where there is one.
"""

from collections.abc import Mapping, Sequence

from clusterlora.comparison.differences import Scored
from clusterlora.comparison.result import MethodResult, NoChampion, PairedDifference
from clusterlora.comparison.roles import can_win, is_base
from clusterlora.evaluation.statistics import RESOLUTION

LEAST_PERSONAS = 6
"""Personas below which there is no verdict: with five, the smallest p-value of the signed-rank test is 2 / 2^5 > 0.05."""
LEAST_ITEMS = 12
"""Test items below which there is no verdict: two for each of the fewest personas."""


def choose_champion(
    scored: Scored,
    best_first: Sequence[MethodResult],
    reference: str | None,
    *,
    n_items: int,
    obstacles: Mapping[str, NoChampion],
) -> tuple[str | None, NoChampion | None]:
    """Return (the champion: the best method with everything that a champion needs; else why there is none).

    The reason names the method that came nearest: the best one that is shown to beat the reference, or the reference itself.
    `obstacles` are those of `find_obstacles`.
    """
    if len(scored.means) < LEAST_PERSONAS or n_items < LEAST_ITEMS:
        return None, NoChampion(reason="too few")
    able = [result for result in best_first if can_win(result.method)]
    if not able:
        return None, NoChampion(reason="no candidate")
    if reference is None:
        return None, NoChampion(reason="no reference", method=able[0].method)
    winners = [result for result in able if result.vs_reference and result.vs_reference.outcome == "better"]
    can_be = [*winners, *(result for result in able if result.method == reference)]
    missing: list[NoChampion] = []
    for method in (result.method for result in can_be):
        if method in obstacles:
            missing.append(obstacles[method])
        elif method == reference and _is_lowest(method, best_first, scored):
            missing.append(NoChampion(reason="lowest", method=method))
        else:
            return method, None
    return None, missing[0]


def find_obstacles(
    scored: Scored, results: Sequence[MethodResult], *, floor: float | None, second: str | None = None
) -> Mapping[str, NoChampion]:
    """Return what methods that can win lack to be champion, whatever they are compared with: floor, base model or second headline.

    Tests against the base model are a family of their own (Holm's correction over the methods that can win), so they cost the tests
    against the reference no power. On the `second` headline a champion must not be shown to be worse than the reference.
    """
    against_base = _against_base(scored)
    obstacles: dict[str, NoChampion] = {}
    for result in (result for result in results if can_win(result.method)):
        method, difference = result.method, against_base.get(result.method)
        if floor is not None and min(scored.sign * end for end in (result.mean_low, result.mean_high)) <= scored.sign * floor:
            obstacles[method] = NoChampion(reason="floor", method=method)
        elif difference is not None and difference.outcome != "better":
            obstacles[method] = NoChampion(reason="base model", method=method, difference=difference)
        elif (on_second := result.beside.get(second or "")) is not None and on_second.outcome == "worse":
            obstacles[method] = NoChampion(reason="second headline", method=method, difference=on_second)
    return obstacles


def _is_lowest(method: str, best_first: Sequence[MethodResult], scored: Scored) -> bool:
    """Return whether every other method has a better mean."""
    means = dict(zip(scored.methods, scored.sign * scored.means.mean(axis=0), strict=True))
    return len(best_first) > 1 and all(means[method] < mean - RESOLUTION for other, mean in means.items() if other != method)


def _against_base(scored: Scored) -> Mapping[str, PairedDifference]:
    """Return the difference to the base model of every method that can win; empty where the base model was not compared."""
    base = next((method for method in scored.methods if is_base(method)), None)
    if base is None:
        return {}
    methods = [method for method in scored.methods if can_win(method)]
    return dict(zip(methods, scored.family([(method, base) for method in methods]), strict=True))
