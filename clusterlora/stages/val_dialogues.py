"""Val scores by dialogue: what choices on val take as independent of each other."""

from collections.abc import Iterable, Mapping

import numpy as np

from clusterlora.data.prompts import items
from clusterlora.evaluation.dialogues import dialogue_means, dialogue_numbers
from clusterlora.planning.study_state import StudyState
from clusterlora.values import AdapterComposition


def by_dialogue(
    state: StudyState, scores: Mapping[tuple[str, AdapterComposition], np.ndarray]
) -> dict[tuple[str, AdapterComposition], np.ndarray]:
    """Return the scores of val items, as `evaluate.scores_of` has them, as means of dialogues."""
    dialogues = val_dialogues(state, dict.fromkeys(p for p, _ in scores))
    return {(p, composition): dialogue_means(own, dialogues[p]) for (p, composition), own in scores.items()}


def val_dialogues(state: StudyState, persona_ids: Iterable[str]) -> dict[str, np.ndarray]:
    """Return by persona the dialogue of each val item, in the order of the items."""
    personas, model = state.dataset.by_id(), state.settings.model
    return {p: dialogue_numbers([item.id for item in items(model, personas[p], "val")]) for p in persona_ids}
