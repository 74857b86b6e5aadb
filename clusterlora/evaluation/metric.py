"""What a metric is: a number per answer, and how to read it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from clusterlora.errors import BadData
from clusterlora.evaluation.train_responses import TrainResponses
from clusterlora.ports import Embedder


@dataclass(frozen=True, slots=True, kw_only=True)
class Scorable:
    """Answers ready to be scored, item by item.

    `nll` is the mean negative log-likelihood per token of each reference under the answering model, in nats; only the model pass knows it,
    and `prompt_tokens`, the length of each prompt as it was read.
    `persona_ids` says whom each answer is for, and `train` what everybody was answered with in training; few metrics ask.
    """

    texts: Sequence[str]
    references: Sequence[str]
    embedder: Embedder
    nll: Float[np.ndarray, " item"] | None = None
    persona_ids: Sequence[str] | None = None
    train: TrainResponses | None = None
    prompt_tokens: Sequence[int] | None = None

    def held_against_train(self, metric: str) -> tuple[Sequence[str], TrainResponses]:
        """Return whom each answer is for, and the train responses.

        Raises:
            BadData: either was not given; names the metric that needs them.
        """
        if self.persona_ids is None or self.train is None:
            missing = "train responses" if self.train is None else "persona ids"
            raise BadData(f"metric {metric} needs every item's persona and the personas' train responses, found no {missing}; give both")
        return self.persona_ids, self.train


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A score per item. Values of a `percent` metric lie in 0..1 and are formatted times 100.

    What `embeds` reads embeddings of answers and references, which are made while answers come in.
    """

    name: str
    label: str
    higher_is_better: bool
    score: Callable[[Scorable], Float[np.ndarray, " item"]]
    percent: bool = False
    embeds: bool = False

    def format(self, value: float, *, signed: bool = False) -> str:
        """Return the value as people read it: percent with two decimals, anything else with three."""
        sign = "+" if signed else ""
        return f"{100 * value:{sign}.2f}" if self.percent else f"{value:{sign}.3f}"
