"""What prompts showed of train exchanges, and how many of these did not fit."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from clusterlora.values import AdapterComposition, EvaluationRow

SHOTS = "shots"
SHOTS_DROPPED = "shots_dropped"
"""Names under which an answer's scores say how many exchanges were put before the dialogue, and how many of these were dropped again."""

_RANKINGS = {"embedding": "embedding similarity", "bm25": "BM25"}


@dataclass(frozen=True, slots=True)
class ShownExchanges:
    """The exchanges in a method's prompts: what was chosen on val, how many there were, and how many did not fit `model.max_length`."""

    chosen: str
    n_shown: int
    n_dropped: int

    @property
    def share_dropped(self) -> float:
        """Share of the exchanges that were dropped."""
        return self.n_dropped / max(self.n_shown, 1)


def shots_scores(n_shots: int, n_dropped_turns: int) -> tuple[tuple[str, float], ...]:
    """Return the scores that say how many exchanges a prompt was given and how many of them were dropped; none without exchanges.

    Args:
        n_dropped_turns: turns dropped from the beginning of the prompt, where the exchanges of two turns each are.
    """
    return ((SHOTS, float(n_shots)), (SHOTS_DROPPED, float(min(n_shots, -(-n_dropped_turns // 2))))) if n_shots else ()


def chosen_words(composition: AdapterComposition) -> str:
    """Return what a composition's prompt shows, in words."""
    if not composition.shots:
        return "no exchanges"
    whose = "the person's own" if composition.shots_from == "own" else "the cluster's"
    return f"{composition.shots} of {whose} exchanges by {_RANKINGS[composition.ranking]}"


def shown_by_method(rows: Iterable[EvaluationRow], compositions: Mapping[str, Iterable[AdapterComposition]]) -> dict[str, ShownExchanges]:
    """Return what the prompts of each of these methods showed; training seeds may have chosen differently."""
    counts: dict[str, tuple[int, int]] = dict.fromkeys(compositions, (0, 0))
    for row in rows:
        if row.method in counts and SHOTS in row.scores:
            n_shown, n_dropped = counts[row.method]
            counts[row.method] = (n_shown + int(row.scores[SHOTS]), n_dropped + int(row.scores[SHOTS_DROPPED]))
    return {
        method: ShownExchanges(" or ".join(dict.fromkeys(chosen_words(composition) for composition in of)), *counts[method])
        for method, of in compositions.items()
    }
