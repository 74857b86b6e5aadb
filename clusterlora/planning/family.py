"""A study and its refreshes."""

from clusterlora.comparison.champion import LEAST_ITEMS, LEAST_PERSONAS
from clusterlora.metadata import ComparisonSummary, News, RefreshOutcome, RefreshStart
from clusterlora.planning.cut import studied_dataset
from clusterlora.ports.stores import Stores
from clusterlora.settings import PreparedStudy


def family(root: str, stores: Stores) -> tuple[str, ...]:
    """Return a study and its refreshes, in their order. Raises UnknownName."""
    refreshes = ((name, stores.studies.study(name).refresh) for name, *_ in stores.studies.studies())
    numbered = ((refresh.number or 0, name) for name, refresh in refreshes if refresh.root == root)
    return (stores.studies.study(root).name, *(name for _, name in sorted(numbered)))


def lineage(study: str, stores: Stores) -> tuple[str, ...]:
    """Return a refresh and the studies whose champions it goes on from, the first one last."""
    names = [study]
    while (start := stores.studies.metadata(names[-1], RefreshStart)) is not None:
        names.append(start.study)
    return tuple(names)


def moves_before(study: str, stores: Stores) -> tuple[RefreshOutcome, ...]:
    """Return the moves that made the champion which a refresh challenges, the oldest first.

    A study that became champion by hand, though its comparison did not move the alias, is where they begin.
    """
    moves: list[RefreshOutcome] = []
    for name in lineage(study, stores)[1:]:
        outcome = stores.studies.metadata(name, RefreshOutcome)
        if outcome is None or not outcome.moved:
            break
        moves.insert(0, outcome)
    return tuple(moves)


def decided_before(refresh: PreparedStudy, stores: Stores) -> frozenset[tuple[str, str]]:
    """Return the test dialogues (person, dialogue) on which earlier refreshes of the family have reached a verdict."""
    settings, decided = refresh.refresh, set[tuple[str, str]]()
    for name in family(str(settings.root), stores):
        outcome, news = stores.studies.metadata(name, RefreshOutcome), stores.studies.metadata(name, News)
        if (stores.studies.study(name).refresh.number or 0) >= (settings.number or 0) or outcome is None or news is None:
            continue
        shown = outcome.on_new
        if shown is None or shown.n_personas < LEAST_PERSONAS or shown.n_items < LEAST_ITEMS:
            continue
        new = {(p, one) for p, ids in news.dialogues for one in ids}
        decided |= {(p.id, d.id) for p in studied_dataset(name, stores).personas for d in p.of_split("test")} & new
    return frozenset(decided)


def champions(root: str, stores: Stores) -> tuple[str, ...]:
    """Return, in a sentence each, how the compared studies of a family ended."""
    sentences: list[str] = []
    for name in family(root, stores):
        outcome, summary = stores.studies.metadata(name, RefreshOutcome), stores.studies.metadata(name, ComparisonSummary)
        if outcome is not None:
            sentences.append(f"{name}: the champion {f'moves to {outcome.challenger}' if outcome.moved else 'stays'}, {outcome.reason}")
        elif summary is not None:
            sentences.append(f"{name}: {summary.champion or 'no champion'}")
    return tuple(sentences)
