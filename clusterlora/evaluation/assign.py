"""Cluster or unified for somebody no adapter was trained on, by how well each predicts the answers in a few examples of theirs."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from clusterlora.evaluation.select import select_arm

MARGIN_SE = 1.0
"""Standard errors by which a cluster's gain over unified must exceed zero before the person leaves unified."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Who is to answer: a cluster, or unified (`cluster` is None).

    `nearest` is that cluster, or for who stays with unified the one that predicts the examples best. `gain` is its mean paired gain over
    unified in nats per response token, `standard_error` the gain's; one example has none.
    """

    cluster: int | None
    nearest: int
    gain: float
    standard_error: float | None

    @property
    def gain_in_standard_errors(self) -> float | None:
        """How many standard errors the gain is; None when there is no spread to tell by."""
        return self.gain / self.standard_error if self.standard_error else None


def choose(losses: Float[np.ndarray, "example arm"], *, margin_se: float = MARGIN_SE) -> Choice:
    """Return the choice by a person's examples; arm 0 is unified, arm k + 1 is cluster k.

    A person leaves unified for the cluster with the largest mean gain among those whose gain exceeds `margin_se` standard errors. One
    example has no standard error, and its NLL varies more from answer to answer than from adapter to adapter, so it moves nobody.

    Args:
        losses: mean negative log-likelihood per response token, in nats, of each example under each arm.
    """
    arms = [losses[:, arm] for arm in range(losses.shape[1])]
    chosen = select_arm(arms, higher_is_better=False, margin_se=margin_se)
    nearest = (chosen or 1 + int(np.argmin(losses[:, 1:].mean(axis=0)))) - 1
    gains = arms[0] - arms[nearest + 1]
    return Choice(
        cluster=chosen - 1 if chosen else None,
        nearest=nearest,
        gain=float(gains.mean()),
        standard_error=float(gains.std(ddof=1) / np.sqrt(len(gains))) if len(gains) > 1 else None,
    )
