"""Equal tuning: every method that has a recipe of its own tries the same recipes, by successive halving on val loss.

Every round costs a method about one training by the study's own recipe: the more recipes are left, the fewer people they are tried on. The
best quarter goes on, until one is left. The people of a round are among those of the next, so a person's adapter is trained once.
Source of successive halving: Jamieson & Talwalkar 2016 (arXiv 1502.07943).
"""

import hashlib
import math
from collections.abc import Iterable, Mapping

from clusterlora.errors import TrainingDiverged
from clusterlora.metadata import TrialRecipe, Tuning, TuningRound
from clusterlora.methods import METHODS
from clusterlora.methods.method import StudyView
from clusterlora.planning.ladder import GATED, REFERENCE, gated, next_rung, refused
from clusterlora.planning.study_state import StudyState

KEPT = 4
"""Of so many recipes one goes on to the next round."""


def tuned_methods(names: Iterable[str]) -> tuple[str, ...]:
    """Return the methods with a recipe of their own behind these methods, each after those whose adapters it builds on."""
    order: dict[str, None] = {}

    def add(name: str) -> None:
        recipes = METHODS[name].recipes
        for other in recipes:
            if other != name:
                add(other)
        if name in recipes:
            order[name] = None

    for name in names:
        add(name)
    return tuple(order)


def left(tuning: Tuning, method: str) -> tuple[int, ...]:
    """Return the numbers of a method's recipes that are left, the best first: before its first round all, none where all diverged."""
    rounds = tuning.rounds(method)
    if not rounds:
        return tuple(range(len(tuning.recipes)))
    last = rounds[-1].losses
    ranked = sorted((loss, number) for number, loss in last if loss is not None)
    return tuple(number for _, number in ranked[: math.ceil(len(last) / KEPT)])


def check_left(state: StudyState, methods: Iterable[str]) -> None:
    """Check that methods have recipes left.

    Raises:
        TrainingDiverged: all of one diverged.
    """
    for method in methods:
        if state.tuning is not None and not left(state.tuning, method):
            raise TrainingDiverged(
                f"all {len(state.tuning.recipes)} recipes that were tried for {method} diverged; run the study under another name (--name) "
                f"with a lower recipe.learning_rate, or without the method"
            )


def chosen(tuning: Tuning | None) -> Mapping[str, TrialRecipe]:
    """Return the recipe of every method that has been tuned to the end."""
    if tuning is None:
        return {}
    methods = dict.fromkeys(one.method for step in tuning.steps for one in step)
    return {method: tuning.recipes[left(tuning, method)[0]] for method in methods if len(left(tuning, method)) == 1}


def in_turn(state: StudyState, *, whole: bool = False) -> tuple[str, ...]:
    """Return the methods whose next round is due; none when all are tuned, or the study tunes nothing.

    Before the gate, those alone that it judges are tuned; after it, all others, unless it refused. A method waits for those that it
    builds on.

    Args:
        whole: whatever the gate has yet to say.
    """
    if state.tuning is None or state.clustering is None or refused(state):
        return ()
    before_gate = gated(state) and next_rung(state) is not None and not whole
    methods = tuned_methods((GATED,) if before_gate else planned_methods(state))
    done = chosen(state.tuning)
    return tuple(m for m in methods if m not in done and all(other in done for other in METHODS[m].recipes if other != m))


def planned_methods(state: StudyState) -> tuple[str, ...]:
    """Return the study's methods that train anything, and unified where the gate compares with it."""
    names = tuple(name for name in state.settings.methods if not _is_imported(state, name))
    return (*names, REFERENCE) if GATED in names and REFERENCE not in names else names


def _is_imported(state: StudyState, method: str) -> bool:
    """Return whether all adapters that a method answers with were imported."""
    if not METHODS[method].needs_import or state.imported is None or state.clustering is None:
        return False
    ids, own = state.dataset.ids, state.settings.recipe
    view = StudyView(ids, state.clustering.members, own, own, None, {}, state.settings.merging, state.imported)
    return all(spec.imported or spec.merge_of for spec in METHODS[method].plan(view).adapters)


def round_people(state: StudyState, method: str) -> tuple[str, ...]:
    """Return the people of a method's next round: as many as make it cost one training, and at least one.

    One person of every cluster is among them where a third more people suffice. They are the first of an order that depends on nothing but
    ids: one of every cluster, the largest first, then people of all clusters in proportion.
    """
    tuning = state.tuning
    assert tuning is not None, f"study {state.name} tunes nothing"
    epochs = sum(tuning.recipes[number].recipe.epochs for number in left(tuning, method))
    order = _order(state)
    n = math.ceil(len(order) * min(1.0, state.settings.recipe.epochs / epochs))
    n_clusters = len(state.clustering.members) if state.clustering else 1
    return order[: max(n, min(n_clusters, n + n // 3))]


def _order(state: StudyState) -> tuple[str, ...]:
    clusters = state.clustering.members if state.clustering else (state.dataset.ids,)
    people = state.dataset.by_id()
    places: list[tuple[bool, float, str, str]] = []
    for members in clusters:
        # Who has no val dialogue says nothing of a val loss.
        ids = [p for p in members if people[p].of_split("val")]
        hashes = sorted((hashlib.sha256(p.encode()).hexdigest(), p) for p in ids)
        places += [(number > 0, (number + 0.5) / len(ids), digest, p) for number, (digest, p) in enumerate(hashes)]
    return tuple(p for *_, p in sorted(places))


def with_step(tuning: Tuning, rounds: Iterable[TuningRound]) -> Tuning:
    """Return the tuning with one more step."""
    return Tuning(tuning.recipes, (*tuning.steps, tuple(rounds)))


def rounds_of(n: int) -> tuple[int, ...]:
    """Return how many recipes each round tries, of n."""
    return (n, *rounds_of(math.ceil(n / KEPT))) if n > 1 else ()
