"""What the gate's absolute thresholds can ask of these data: the closest that anybody's train answers come to the val answers."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from clusterlora.errors import BadData, counted
from clusterlora.ports.embedder import Embedder
from clusterlora.settings import GateSettings

_MOST_ANSWERS = 4000
"""Train answers that are embedded; of more, every n-th."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceiling:
    """What the closest of `n_answers` train answers scores, picked for every val item by its reference, on the 0..1 scale of similarity.

    `mean` is the mean over personas, `worst` the lowest persona mean, that of `worst_persona_id`. An adapter learns from these answers: one
    that scores higher would know what it was not told.
    """

    mean: float
    worst: float
    worst_persona_id: str
    n_answers: int

    def out_of_reach(self, settings: GateSettings) -> dict[str, str]:
        """Return the absolute criteria whose thresholds are above the ceiling, each with a sentence that says so and what to do."""
        return dict(self._out_of_reach(settings))

    def _out_of_reach(self, settings: GateSettings) -> Iterator[tuple[str, str]]:
        best = f"the closest of {counted(self.n_answers, 'train answer')}, picked knowing the right one, scores"
        for name, asked, reached, whom in (
            ("mean_similarity", settings.mean_similarity, self.mean, "on average"),
            ("worst_persona", settings.worst_persona, self.worst, f"for the worst persona, {self.worst_persona_id}"),
        ):
            if asked is not None and asked >= reached:
                yield (
                    name,
                    f"gate.{name} = {asked:.2f} is out of reach of these data: {best} {reached:.2f} {whom}. "
                    f"The gate will hardly pass; use another --name with --set gate.{name}=none, or a lower value.",
                )


def ceiling(val_by_persona: Mapping[str, Sequence[str]], train: Sequence[str], embedder: Embedder) -> Ceiling:
    """Return the ceiling of personas with these val references, given everybody's train answers.

    Raises:
        BadData: no train answers, no personas, or a persona without val references.
    """
    if not train or not val_by_persona or not all(val_by_persona.values()):
        raise BadData("the gate's ceiling needs train answers, and val answers of each of its personas; look at the splits of the data")
    answers = sorted(set(train))
    step = -(-len(answers) // _MOST_ANSWERS)
    known = embedder.encode(answers[::step])
    means = {p: float(np.max(embedder.encode(references) @ known.T, axis=1).mean()) for p, references in val_by_persona.items()}
    worst = min(means, key=lambda persona_id: means[persona_id])
    return Ceiling(mean=float(np.mean(list(means.values()))), worst=means[worst], worst_persona_id=worst, n_answers=len(known))
