"""Saves answers while others are generated."""

import time
from collections.abc import Sequence

from clusterlora.ports.study_store import StudyStore
from clusterlora.values import Answer

_SAVE_SECONDS = 30.0
"""How long answers wait for others to be saved with: on a GPU a batch of them takes milliseconds."""


class AnswerSaver:
    """Saves a study's answers together, often enough that a killed process has few to give again."""

    def __init__(self, study_name: str, studies: StudyStore) -> None:
        self._study_name = study_name
        self._studies = studies
        self._unsaved: list[Answer] = []
        self._saved = time.monotonic()

    def add(self, answers: Sequence[Answer]) -> None:
        """Take answers over, and save all unsaved ones if the last were saved long enough ago."""
        self._unsaved += answers
        if time.monotonic() - self._saved > _SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        """Save the unsaved answers. Raises ServiceDown."""
        self._studies.save_answers(self._study_name, self._unsaved)
        self._unsaved.clear()
        self._saved = time.monotonic()
