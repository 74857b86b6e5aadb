"""The outcome of the studies of an empirical null, from the study database."""

from collections.abc import Sequence
from pathlib import Path

from clusterlora.comparison.null_rate import NullRate, null_rate
from clusterlora.data.permutation import remainder
from clusterlora.durable import write_durably
from clusterlora.errors import BadData
from clusterlora.metadata import ComparisonSummary
from clusterlora.ports.stores import Stores


def rate_of(study_names: Sequence[str], stores: Stores) -> NullRate:
    """Return what these studies claim. Raises BadData for one that was not compared, or never begun."""
    begun = {name for name, *_ in stores.studies.studies()}
    outcomes = {name: stores.studies.metadata(name, ComparisonSummary) if name in begun else None for name in study_names}
    lacking = [name for name, outcome in outcomes.items() if outcome is None]
    if lacking:
        raise BadData(f"{lacking[0]} was not compared, so its claims are not known; run the same command again, which goes on with it")
    compared = [(name, outcome) for name, outcome in outcomes.items() if outcome is not None]
    return null_rate(compared, [remainder(stores.studies.dataset(name)) for name, _ in compared])


def write_null_rate(study_name: str, rate: NullRate, stores: Stores) -> Path:
    """Write results/null.md of the study whose labels were permuted, and return where it is."""
    path = stores.folder(study_name) / "results" / "null.md"
    write_durably(path, rate.markdown().encode())
    return path
