"""How much adapters per cluster and per person could gain on a study's data, measured once, before anything is trained."""

from dataclasses import replace
from statistics import median

from clusterlora.clustering import PREREQUISITES
from clusterlora.clustering.cluster import cluster_personas
from clusterlora.clustering.features import Sources
from clusterlora.data.load import load, read
from clusterlora.data.split import SPLITS
from clusterlora.errors import BadData
from clusterlora.models.model_cache import embedder
from clusterlora.persona_signal.measure import PersonaSignal, measure
from clusterlora.planning.cut import studied_dataset
from clusterlora.ports.run_log import RunLog
from clusterlora.ports.stores import Stores
from clusterlora.progress.timing import timed
from clusterlora.settings import ClusteringSettings, Study
from clusterlora.stages.model_fit import embedding_warnings
from clusterlora.values import Clustering, Dataset, Dialogue, Persona, Turn


def signal_of_study(study_name: str, stores: Stores, log: RunLog) -> PersonaSignal:
    """Return the signal in the data of a study whose personas are clustered; it is measured once and recorded.

    One of labels that was recorded without intervals is measured again: they decide what it lets one expect.
    """
    measured = stores.studies.metadata(study_name, PersonaSignal)
    if measured is not None and measured.has_intervals:
        return measured
    study = stores.studies.study(study_name)
    clustering = stores.studies.clustering(study_name)
    assert clustering is not None, f"the signal of study {study_name} was measured before its clustering"
    with timed(stores, study_name, "signal"):
        # In a refresh, somebody new may have said too little to have a val dialogue.
        personas = tuple(person for person in studied_dataset(study_name, stores).personas if person.of_split("val"))
        there, labelled = {person.id for person in personas}, study.data.task != "text"
        members = (tuple(p for p in ids if p in there) for ids in clustering.members)
        clustering = replace(clustering, members=tuple(ids for ids in members if ids))
        measured = measure(personas, clustering, embedder(study.model), log, labelled=labelled)
        stores.studies.save_metadata(study_name, measured)
    return measured


def signal_of_data(study: Study, log: RunLog) -> tuple[PersonaSignal, Clustering]:
    """Return the signal in the data that these settings name, and the clusters it was measured with. Nothing is stored or trained.

    A clustering that reads adapters is replaced by the default, which reads answers only. Where most people have too few dialogues for
    a split, each dialogue is cut into halves instead and the clustering is `responses`: a single dialogue per split does not show how
    much a person's answers vary.
    """
    settings = study.clustering
    if settings.algorithm in PREREQUISITES:
        settings = replace(settings, algorithm=ClusteringSettings().algorithm)
    dialogues_each = [len(persona.dialogues) for persona in read(study.data).dataset.personas]
    within = bool(dialogues_each) and median(dialogues_each) < len(SPLITS)
    if within:
        dataset, settings = _split_within(study), replace(settings, algorithm="responses")
    else:
        dataset = load(study.data)
    labelled = study.data.task != "text"
    for sentence in () if labelled else embedding_warnings(study.model.embedding, dataset.personas):
        log.note(f"warning: {sentence}")
    clustering = cluster_personas(dataset, settings, Sources(embedder(study.model)), log)
    measured = measure(dataset.personas, clustering, embedder(study.model), log, labelled=labelled)
    return replace(measured, within_dialogues=within), clustering


def _split_within(study: Study) -> Dataset:
    """Return the people who have dialogues of two answers or more, each such dialogue cut into a train half and a val half.

    The val half keeps the earlier turns as the user's, so that their words are masked in its answers.

    Raises:
        BadData: fewer than two people have such a dialogue.
    """
    personas: list[Persona] = []
    for persona in read(study.data).dataset.personas[: study.data.personas]:
        halves = [half for dialogue in persona.dialogues for half in _halves(dialogue)]
        if halves:
            personas.append(replace(persona, dialogues=tuple(halves)))
    if len(personas) < 2:
        raise BadData(
            f"{len(personas)} people have a dialogue with two answers, and most have fewer than {len(SPLITS)} dialogues; "
            "give people more dialogues, or longer ones"
        )
    return Dataset(tuple(personas))


def _halves(dialogue: Dialogue) -> tuple[Dialogue, ...]:
    answers = [index for index, turn in enumerate(dialogue.turns) if turn.role == "assistant"]
    if len(answers) < 2:
        return ()
    cut = answers[len(answers) // 2 - 1] + 1
    earlier = tuple(Turn("user", turn.text) for turn in dialogue.turns[:cut])
    return (
        replace(dialogue, id=f"{dialogue.id}/first", turns=dialogue.turns[:cut], split="train"),
        replace(dialogue, id=f"{dialogue.id}/second", turns=(*earlier, *dialogue.turns[cut:]), split="val"),
    )
