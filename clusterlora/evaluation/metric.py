"""The metric type: a score per answer, and how to interpret it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from clusterlora.errors import BadData
from clusterlora.evaluation.train_responses import TrainResponses
from clusterlora.ports.embedder import Embedder
from clusterlora.settings import Task


@dataclass(frozen=True, slots=True)
class LabelProbabilities:
    """How likely every label is as the answer to each item, given that it is one of them."""

    labels: tuple[str, ...]
    values: Float[np.ndarray, "item label"]

    @property
    def likeliest(self) -> list[str]:
        """The likeliest label of each item; of equally likely ones the first."""
        return [self.labels[column] for column in self.values.argmax(axis=1)]

    @property
    def expected(self) -> Float[np.ndarray, " item"]:
        """The mean of each item's rating under these probabilities; labels must be numbers."""
        return self.values @ np.array([float(label) for label in self.labels])


@dataclass(frozen=True, slots=True, kw_only=True)
class Scorable:
    """Answers to be scored, one per item.

    `nll` is the mean negative log-likelihood per token of each reference under the answering model, in nats, and `prompt_tokens` the length
    of each prompt; both come from the model pass. `persona_ids` and `train` are only needed by metrics that compare with train responses,
    `probabilities` by those of labels, for which `texts` are the likeliest.
    """

    texts: Sequence[str]
    references: Sequence[str]
    embedder: Embedder
    nll: Float[np.ndarray, " item"] | None = None
    persona_ids: Sequence[str] | None = None
    train: TrainResponses | None = None
    prompt_tokens: Sequence[int] | None = None
    probabilities: LabelProbabilities | None = None

    def require_probabilities(self, metric: str) -> LabelProbabilities:
        """Return the probabilities of the labels. Raises BadData: the answers have none."""
        if self.probabilities is None:
            raise BadData(f"metric {metric} needs the probabilities of the labels, and has none; run the model pass with labels")
        return self.probabilities

    def require_train(self, metric: str) -> tuple[Sequence[str], TrainResponses]:
        """Return each answer's persona id, and the train responses.

        Raises:
            BadData: either is missing; names the metric that needs them.
        """
        if self.persona_ids is None or self.train is None:
            missing = "train responses" if self.train is None else "persona ids"
            raise BadData(f"metric {metric} needs every item's persona and the personas' train responses, and has no {missing}; give both")
        return self.persona_ids, self.train


Pooled = Callable[[Sequence[str], Sequence[str], Float[np.ndarray, " item"], Float[np.ndarray, " item"]], float]
"""A statistic of all items from (answers, references, item scores, weights); the weights sum to 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A score per item. Values of a `percent` metric lie in 0..1 and are formatted times 100; others with `decimals`.

    `embeds` marks metrics of embeddings: answers and references are embedded while other answers are generated. One that `embeds_train`
    embeds everybody's train answers, once in every process that scores. Where no metric `reads_answers`, nothing is generated. `carried`
    says whether a text has what a metric of a domain measures, such as numbers; where enough references have it, it is computed beside the
    headline. `unit` is that of a value which is no percentage. One that cannot decide describes answers without saying which are better, so
    it is no headline.

    A metric of labels names the `tasks` whose answers it scores, by the labels' likelihoods. A `pooled` one is no mean of its item scores:
    its value comes from answers, references, item scores and weights of all items together, so it is told without interval or test. A
    `pairwise` one compares answers of two methods, so it is scored when these are compared and not with an answer.

    `guess` is what a uniform guess over so many tokens scores: the floor of a metric of likelihoods.
    """

    name: str
    label: str
    higher_is_better: bool
    score: Callable[[Scorable], Float[np.ndarray, " item"]]
    percent: bool = False
    decimals: int = 3
    embeds: bool = False
    embeds_train: bool = False
    reads_answers: bool = True
    unit: str = ""
    can_decide: bool = True
    carried: Callable[[str], bool] | None = None
    tasks: tuple[Task, ...] = ()
    pooled: Pooled | None = None
    pairwise: bool = False
    guess: Callable[[int], float] | None = None

    @property
    def floor_is(self) -> str:
        """What scores the floor."""
        return "a uniform guess over the base model's tokens" if self.guess else "somebody else's reference"

    def is_better(self, value: float, than: float) -> bool:
        """Return whether a value is better than another."""
        return self.gain(value - than) > 0

    def format(self, value: float, *, signed: bool = False) -> str:
        """Return the value as text: percent with two decimals, anything else with the metric's."""
        sign = "+" if signed else ""
        return f"{100 * value:{sign}.2f}" if self.percent else f"{value:{sign}.{self.decimals}f}"

    def difference(self, value: float, *, signed: bool = True) -> str:
        """Return a difference with its unit: points of a percentage, else the metric's own."""
        return f"{self.format(value, signed=signed)} {'points' if self.percent else self.unit}".rstrip()

    def gain(self, value: float) -> float:
        """Return a difference as a gain, positive where the score became better."""
        return value if self.higher_is_better else -value
