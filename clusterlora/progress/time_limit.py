"""Cut a study to the minutes that it may take, by the pace that its probe measured."""

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import get_args

from clusterlora.metadata import Cut
from clusterlora.planning.cut import cut_to
from clusterlora.planning.study_state import StudyState
from clusterlora.progress.estimate import estimate
from clusterlora.values import Split

_LEAST_PERSONAS = 12
"""Fewer people show large differences only: with 12, one of 0.9 standard deviations of people's differences is found 80 % of the time."""
_LEAST: Mapping[Split, int] = {"train": 3, "val": 1, "test": 2}
"""Dialogues of a person below which there is little to learn from, or a mean over items says nothing."""
_STEPS = 10


def cut_to_time(state: StudyState) -> Cut | None:
    """Return to what a study has to be cut to end within its minutes, of which some have passed; None where it fits or has begun.

    First everybody's dialogues become fewer, down to half; then people, down to `_LEAST_PERSONAS`, for the interval is over them; then
    dialogues again. Where nothing fits, the last of these cuts is returned.
    """
    whole, minutes = estimate(state), state.settings.minutes
    begun = state.clustering is not None or state.adapters or state.start is not None
    if whole is None or minutes is None or begun or state.cut is not None:
        return None
    left = _seconds_left(state, minutes)
    if whole.total <= left:
        return None

    def seconds(cut: Cut) -> float:
        shorter = estimate(replace(state, data=cut_to(state.dataset, cut)))
        assert shorter is not None, "the state had an estimate with all of its data"
        return shorter.total

    cuts = list(_cuts(state))
    # Every cut leaves less to do than the one before.
    position = bisect_left(cuts, x=True, key=lambda cut: seconds(cut) <= left)
    chosen = cuts[min(position, len(cuts) - 1)]
    return replace(chosen, whole=whole.total, expected=seconds(chosen), fits=position < len(cuts))


def takes_longer(state: StudyState) -> bool:
    """Return whether what is left of a study is expected to take longer than its minutes leave; False where nobody knows."""
    expected, minutes = estimate(state), state.settings.minutes
    return expected is not None and minutes is not None and expected.total > _seconds_left(state, minutes)


def _seconds_left(state: StudyState, minutes: float) -> float:
    return 60 * minutes - sum(seconds for _, _, seconds in state.seconds)


def _cuts(state: StudyState) -> Iterator[Cut]:
    """Yield ever smaller cuts of a study's data, each once."""
    people = state.dataset.personas
    most: dict[Split, int] = {split: max(len(person.of_split(split)) for person in people) for split in get_args(Split)}
    clustering = state.settings.clustering
    # Clusters of given sizes are clusters of everybody, and so many clusters have so many people at least.
    enough = max(_LEAST_PERSONAS, (clustering.k or 1) * clustering.min_size)
    fewest = len(people) if clustering.sizes is not None else min(len(people), enough)
    shares = [1 - step / (2 * _STEPS) for step in range(2 * _STEPS + 1)]
    sizes = [(len(people), share) for share in shares[: _STEPS + 1]]
    sizes += [(n, shares[_STEPS]) for n in range(len(people) - 1, fewest - 1, -1)]
    sizes += [(fewest, share) for share in shares[_STEPS + 1 :]]
    counts = {(n, *(min(most[split], max(_LEAST[split], round(share * most[split]))) for split in most)): None for n, share in sizes}
    for n, train, val, test in counts:
        yield Cut(of_personas=len(people), n_personas=n, train=train, val=val, test=test, whole=0.0, expected=0.0, fits=False)
