"""What a metric is: a number per answer, and how to read it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from clusterlora.ports import Embedder


@dataclass(frozen=True, slots=True, kw_only=True)
class Scorable:
    """Answers ready to be scored, item by item.

    `nll` is the mean negative log-likelihood per token of each reference under the answering model, in nats; only the model pass knows it.
    """

    texts: Sequence[str]
    references: Sequence[str]
    embedder: Embedder
    nll: Float[np.ndarray, " item"] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A score per item. Values of a `percent` metric lie in 0..1 and are shown times 100."""

    name: str
    label: str
    higher_is_better: bool
    score: Callable[[Scorable], Float[np.ndarray, " item"]]
    percent: bool = False

    def shown(self, value: float, *, signed: bool = False) -> str:
        """Return the value as people read it: percent with two decimals, anything else with three."""
        sign = "+" if signed else ""
        return f"{100 * value:{sign}.2f}" if self.percent else f"{value:{sign}.3f}"
