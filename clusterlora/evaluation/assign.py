"""Assigns a new persona to a cluster's adapter or to unified, by the likelihood of a few of its dialogues under each."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from clusterlora.evaluation.select import select_arm

MARGIN_SE = 1.0
"""Standard errors by which the gain over unified of a single cluster must exceed zero to be chosen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The adapter that answers: a cluster's, or unified (`cluster` is None).

    `nearest` is the chosen cluster, or under unified the one with the highest likelihood. `gain` is its mean paired gain over unified in
    nats per response token, with its `standard_error`, which is None for a single dialogue.
    """

    cluster: int | None
    nearest: int
    gain: float
    standard_error: float | None

    @property
    def gain_in_standard_errors(self) -> float | None:
        """The gain divided by its standard error; None without spread."""
        return self.gain / self.standard_error if self.standard_error else None


def choose(losses: Float[np.ndarray, "dialogue arm"], *, margin_se: float = MARGIN_SE) -> Choice:
    """Return the choice for a persona's dialogues; arm 0 is unified, arm k + 1 is cluster k.

    Of the clusters whose gain exceeds `margin_se` standard errors (more where there are several clusters, `select.margin_for`), the one
    with the largest mean gain is chosen, without any unified. A single dialogue has no standard error, and NLL varies more between
    answers than between adapters, so it always chooses unified.

    Args:
        losses: mean negative log-likelihood per response token, in nats, of each dialogue under each arm, turns averaged.
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
