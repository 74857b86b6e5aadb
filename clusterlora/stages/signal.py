"""How much there is to win in a study's data, measured once, before anything is trained."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from clusterlora.clustering import PREREQUISITES
from clusterlora.clustering.cluster import cluster_personas
from clusterlora.clustering.features import Sources
from clusterlora.data.load import load
from clusterlora.ports import RunLog, Stores
from clusterlora.settings import Study
from clusterlora.signal.measure import Recognition, Signal, measure
from clusterlora.stages.loaded import embedder
from clusterlora.stages.timing import timed

_FACT = "signal"


def signal(study_name: str, stores: Stores, log: RunLog) -> Signal:
    """Return the signal in the data of a study whose personas are grouped; what was measured before is kept."""
    known = known_signal(stores.studies.facts(study_name))
    if known is not None:
        return known
    study = stores.studies.study(study_name)
    clustering = stores.studies.clustering(study_name)
    assert clustering is not None, "the signal of clusters was asked for before there are any"
    with timed(stores, study_name, "signal"):
        found = measure(stores.studies.dataset(study_name).personas, clustering, embedder(study.model), log)
        stores.studies.save_fact(study_name, _FACT, asdict(found))
    return found


def signal_of_data(study: Study, log: RunLog) -> Signal:
    """Return the signal in the data that these settings name. Nothing is stored, and nothing trained.

    A clustering that reads adapters is replaced by the one on answers that needs none.
    """
    settings = study.clustering
    if settings.algorithm in PREREQUISITES:
        settings = replace(settings, algorithm="responses_discriminant")
    dataset = load(study.data)
    clustering = cluster_personas(dataset, settings, Sources(embedder(study.model)))
    return measure(dataset.personas, clustering, embedder(study.model), log)


def known_signal(facts: Mapping[str, Any]) -> Signal | None:
    """Return the signal among a study's facts, if it was measured."""
    found = facts.get(_FACT)
    if found is None:
        return None
    values: dict[str, Any] = {name: Recognition(**value) if isinstance(value, Mapping) else value for name, value in found.items()}
    return Signal(**values)
