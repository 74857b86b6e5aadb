"""A study and its refreshes."""

from clusterlora.metadata import ComparisonSummary, RefreshOutcome, RefreshStart
from clusterlora.ports.stores import Stores


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
