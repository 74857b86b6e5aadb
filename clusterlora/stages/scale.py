"""Reference points for reading scores: what other people's references score, or a uniform guess. No method changes them."""

from collections.abc import Sequence

import numpy as np

from clusterlora.data.prompts import items
from clusterlora.evaluation.metric import Scorable
from clusterlora.evaluation.metrics import METRICS
from clusterlora.evaluation.reference_points import FLOOR_REFERENCES, SAME_PROMPT_ITEMS, floor, most_similar_of_others
from clusterlora.metadata import ReferencePoints
from clusterlora.models.model_cache import embedder
from clusterlora.planning.study_state import StudyState
from clusterlora.ports.stores import Stores
from clusterlora.progress.timing import timed
from clusterlora.settings import Study
from clusterlora.values import Item, digest


def scale(state: StudyState, stores: Stores, persona_ids: Sequence[str]) -> ReferencePoints:
    """Return the reference points of the headline on these personas' test items; those measured on the same items before are reused.

    There are none when the headline is neither a similarity to the reference nor a likelihood, when similarities have fewer than two
    personas with test items, and for labels: nobody guesses those among all tokens.
    """
    study, dataset, compared = state.settings, state.dataset, frozenset(persona_ids)
    if study.data.task != "text":
        return ReferencePoints()
    if guess := METRICS[study.evaluation.headline].guess:
        n_tokens = state.provenance.n_base_tokens if state.provenance else None
        return ReferencePoints(guess(n_tokens) if n_tokens else None)
    test_items = {p.id: items(study.model, p, "test") for p in dataset.personas if p.id in compared and p.of_split("test")}
    if study.evaluation.headline != "embedding_similarity" or len(test_items) < 2:
        return ReferencePoints()
    measured_on = digest([tuple(test_items), study.model, dataset.digest])
    recorded = stores.studies.metadata(study.name, ReferencePoints)
    if recorded is not None and recorded.measured_on == measured_on:
        return recorded
    with timed(stores, study.name, "scale"):
        measured = ReferencePoints(_floor(study, test_items), _floor_same_prompt(study, test_items), measured_on)
    stores.studies.save_metadata(study.name, measured)
    return measured


def _floor(study: Study, test_items: dict[str, tuple[Item, ...]]) -> float:
    return floor({p: [item.reference for item in its[:FLOOR_REFERENCES]] for p, its in test_items.items()}, embedder(study.model))


def _floor_same_prompt(study: Study, test_items: dict[str, tuple[Item, ...]]) -> float:
    """Return what another persona's reference for the most similar prompt scores.

    A prompt is the dialogue so far without the system turn, latest turn first: an embedding model that truncates texts keeps the latest.
    """
    first_items = {p: its[:SAME_PROMPT_ITEMS] for p, its in test_items.items()}
    prompts = {p: ["\n".join(turn.text for turn in reversed(item.messages[1:])) for item in its] for p, its in first_items.items()}
    nearest = most_similar_of_others(prompts, embedder(study.model))
    references = [item.reference for its in first_items.values() for item in its]
    scorable = Scorable(texts=[references[number] for number in nearest], references=references, embedder=embedder(study.model))
    scores = METRICS[study.evaluation.headline].score(scorable)
    ends = np.cumsum([len(its) for its in first_items.values()])
    return float(np.mean([part.mean() for part in np.split(scores, ends[:-1])]))
