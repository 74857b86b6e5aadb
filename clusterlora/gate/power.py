"""The gate's power, estimated before training and measured at a verdict: the gain that passes, and how often none does, by luck."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int

from clusterlora.errors import BadData, counted
from clusterlora.evaluation.metric import Metric
from clusterlora.evaluation.metrics import METRICS
from clusterlora.evaluation.metrics.embedding_similarity import EMBEDDING_SIMILARITY
from clusterlora.evaluation.statistics import RESOLUTION, welch_interval
from clusterlora.gate.required_share import required_share
from clusterlora.gate.trial import Scores
from clusterlora.settings import GateSettings
from clusterlora.values import Verdict

CORRELATION = 0.7
"""Assumed correlation of two adapters' scores on the same item; nothing is trained yet to measure it on."""
WANTED_POWER = 0.8
NOTABLE_GAIN = 0.05
"""Five points of similarity, or 0.05 nats: the refusals of a gate that often misses this gain mean little."""
_TOO_OFTEN = 0.2
_DRAWS = 4000
"""Simulated gates: the standard error of a probability of 0.8 is then 0.6 percentage points."""


def amount(metric: Metric, gain: float) -> str:
    """Return a gain with its unit, to three digits."""
    return f"{100 * gain:.3g} points" if metric.percent else f"{gain:.3g} {metric.unit}".rstrip()


@dataclass(frozen=True, slots=True, kw_only=True)
class Power:
    """The power of a gate; gains and deviations in units of `metric`.

    Before training it is estimated from scores of the base model, after a verdict it is measured on the gains that were judged.
    `item_sd` is the deviation of items inside a persona, `persona_sd` that of personas' true means, and a gain has `gain_variance`
    times their variance. Of the first rung, `detectable_gain` is the smallest true gain that passes with probability `WANTED_POWER`
    (None: none does), `false_pass` the probability of a pass without any gain, and `missed` that of a refusal at `NOTABLE_GAIN`.

    Of the whole ladder of `n_rungs`, `ladder_false_pass` is the probability that some rung passes without any gain, and `worth` what a
    pass says: the probability of a gain of `NOTABLE_GAIN` after it, if that and no gain at all were equally likely before. Only the
    criteria that compare the headline with unified are simulated, the one with a random group of `n_in_group` people among them (0: the
    gate does not ask it), which is taken to gain nothing: the outcome of the others depends on a level that is not known yet.
    """

    n_personas: int
    n_items: int
    item_sd: float
    persona_sd: float
    detectable_gain: float | None
    false_pass: float
    missed: float
    n_rungs: int = 1
    ladder_false_pass: float | None = None
    worth: float | None = None
    gain_variance: float = 2 * (1 - CORRELATION)
    n_in_group: int = 0
    metric: str = EMBEDDING_SIMILARITY.name

    def gain_sd(self, n_items: float) -> float:
        """Return the deviation of people's gains that scores of so many items per persona have, by the same assumptions."""
        return float(np.sqrt(self.gain_variance * (self.persona_sd**2 + self.item_sd**2 / n_items)))

    def _amount(self, gain: float) -> str:
        return amount(METRICS[self.metric], gain)

    @property
    def is_known(self) -> bool:
        """Whether there is a spread to tell luck by: scores of one persona, or all alike, show none."""
        return self.n_personas > 1 and max(self.item_sd, self.persona_sd) > RESOLUTION

    @property
    def sentence(self) -> str:
        """The power in one line; where there is no spread to tell it by, what is missing."""
        size = f"{counted(self.n_personas, 'persona')} and {counted(self.n_items, 'val item')}"
        if not self.is_known:
            return f"With {size} nothing can be said of what this gate passes by luck: that takes two personas or more whose scores differ."
        passes = "no gain passes" if self.detectable_gain is None else f"a true gain of {self._amount(self.detectable_gain)} passes"
        ladder = worth = ""
        group = "; a random group is taken to gain nothing" if self.n_in_group else ""
        if self.n_rungs > 1 and self.ladder_false_pass is not None:
            ladder = f"; one of its {self.n_rungs} rungs is passed so {self.ladder_false_pass:.0%} of the time"
        if self.worth is not None:
            gain = self._amount(NOTABLE_GAIN)
            worth = f" Where a gain of {gain} and no gain were equally likely before, a pass makes the gain {self.worth:.0%} likely."
        return (
            f"With {size} {passes} this gate {WANTED_POWER:.0%} of the time, and no gain at all passes it {self.false_pass:.0%} of the "
            f"time{ladder}{group}.{worth}"
        )

    @property
    def warnings(self) -> tuple[str, ...]:
        """Limits that a reader of the verdict must know, each with the fix; empty for a reliable gate."""
        luck = self.false_pass if self.ladder_false_pass is None else self.ladder_false_pass
        return (*self._pass_may_be_luck(luck), *self._refusal_may_be_luck()) if self.is_known else ()

    def warnings_after(self, verdict: Verdict) -> tuple[str, ...]:
        """Limits of a verdict of the first rung, unless the interval of its own gain says otherwise.

        A pass whose interval excludes zero is not luck, nor is a refusal whose interval excludes a gain of `NOTABLE_GAIN`.
        """
        gain = next(criterion for criterion in verdict.criteria if criterion.name == "above_unified")
        if not self.is_known:
            return ()
        if verdict.passed:
            return () if gain.ci_low is not None and gain.ci_low > 0 else self._pass_may_be_luck(self.false_pass)
        return () if gain.ci_high is not None and gain.ci_high < NOTABLE_GAIN else self._refusal_may_be_luck()

    def _pass_may_be_luck(self, luck: float) -> tuple[str, ...]:
        if luck <= _TOO_OFTEN:
            return ()
        return (
            f"A pass may be luck: {luck:.0%} of clusters without any gain pass; raise gate.share_improved or put more personas into the "
            "judged cluster.",
        )

    def _refusal_may_be_luck(self) -> tuple[str, ...]:
        if self.missed <= _TOO_OFTEN:
            return ()
        return (
            f"A refusal may be luck: a true gain of {self._amount(NOTABLE_GAIN)} is refused {self.missed:.0%} of the time; raise data.val "
            "or put more personas into the judged cluster.",
        )


def gate_power(
    baseline: Scores,
    settings: GateSettings,
    rng: np.random.Generator,
    metric: str = EMBEDDING_SIMILARITY.name,
    *,
    group_items: Sequence[int] = (),
) -> Power:
    """Return the power of the gate's comparisons with unified and a random group on these personas and items.

    Gains of personas are simulated as normal around the true gain: with correlation r between the two sides their variance is
    2 (1 - r) (t^2 + s^2 / n), where s is the deviation of a persona's n items and t that of true persona means. All rungs are compared with
    the same answers of unified, so their gains have half of that in common, as those of the group have; the ladder ends at the first
    rung that passes, each judged by the share of personas that `required_share` asks of it.

    Args:
        baseline: scores of the bare base model, one array of items per persona of the judged cluster.
        group_items: how many items each of the random group's people has; empty where the gate does not ask the group.

    Raises:
        BadData: no personas, a persona without items, or a score that is not finite.
    """
    if not baseline or not all(len(scores) and np.isfinite(scores).all() for scores in baseline.values()):
        raise BadData("the gate's power needs finite baseline scores of at least one item per persona; evaluate the baseline on val first")
    spread = _Spread.of(baseline, gain_variance=2 * (1 - CORRELATION))
    group = replace(spread, n_items=np.array(group_items, dtype=np.int64))
    return replace(_simulated(spread, group, settings, rng), metric=metric)


def measured_power(
    gains: Scores,
    settings: GateSettings,
    rng: np.random.Generator,
    metric: str = EMBEDDING_SIMILARITY.name,
    *,
    group_gains: Scores | None = None,
) -> Power:
    """Return the power of a gate whose candidate has been judged: gains vary between people as they were seen to vary.

    What a pass is worth is left out: the interval of the gain that was judged says more.

    Args:
        gains: how much better the candidate scores than unified, one array of items per persona.
        group_gains: the same of the random group's adapter, on its people; None where the gate does not ask it.
    """
    spread, group = (_Spread.of(one, gain_variance=1.0) for one in (gains, group_gains or {}))
    return replace(_simulated(spread, group, settings, rng), metric=metric, worth=None)


@dataclass(frozen=True, slots=True, eq=False)
class _Spread:
    """How gains vary: a persona's is `gain_variance` times the variance of a mean of its items, whose deviations are those of `Power`."""

    n_items: Int[np.ndarray, " persona"]
    item_sd: float
    persona_sd: float
    gain_variance: float

    @classmethod
    def of(cls, scores: Scores, *, gain_variance: float) -> "_Spread":
        """Return the spread of these scores."""
        own = list(scores.values())
        return cls(np.array([len(one) for one in own], dtype=np.int64), *_deviations(own), gain_variance)

    def noise(self, n_rungs: int, rng: np.random.Generator) -> list[Float[np.ndarray, "draw persona"]]:
        """Return draws of everybody's gain under each rung, where none is true; the answers of unified are the same in all."""
        deviations = np.sqrt(self.gain_variance / 2 * (self.persona_sd**2 + self.item_sd**2 / self.n_items))
        shape = (_DRAWS, len(self.n_items))
        of_unified = deviations * rng.standard_normal(shape)
        return [deviations * rng.standard_normal(shape) - of_unified for _ in range(n_rungs)]


def _simulated(spread: _Spread, group: _Spread, settings: GateSettings, rng: np.random.Generator) -> Power:
    """Return the power where gains vary so in the judged cluster and in the random group, which has nobody where it is not asked."""
    n_personas, n_rungs = len(spread.n_items), 1 + len(settings.ladder)
    noise, group_noise = spread.noise(n_rungs, rng), group.noise(n_rungs, rng)
    shares = [required_share(settings, n_personas=n_personas, rung=rung, n_rungs=n_rungs) for rung in range(n_rungs)]
    # The gain at which the interval of the difference to the group begins at zero; none where the gate would not ask.
    needed = [_needed_above_group(own, others) for own, others in zip(noise, group_noise, strict=True)]

    def passed(gain: float, rung: int) -> Bool[np.ndarray, " draw"]:
        gains: Float[np.ndarray, "draw persona"] = gain + noise[rung]
        shared = (gains > RESOLUTION).mean(axis=1) >= shares[rung]
        return shared & (gains.mean(axis=1) > RESOLUTION) & (gain > needed[rung])

    def passes(gain: float) -> float:
        return float(np.mean(passed(gain, 0)))

    def ladder_passes(gain: float) -> float:
        some: Bool[np.ndarray, " draw"] = np.logical_or.reduce([passed(gain, rung) for rung in range(n_rungs)])
        return float(np.mean(some))

    by_luck, with_gain = ladder_passes(0.0), ladder_passes(NOTABLE_GAIN)
    return Power(
        n_personas=n_personas,
        n_items=int(spread.n_items.sum()),
        item_sd=spread.item_sd,
        persona_sd=spread.persona_sd,
        detectable_gain=_smallest(passes, WANTED_POWER),
        false_pass=passes(0.0),
        missed=1 - passes(NOTABLE_GAIN),
        n_rungs=n_rungs,
        ladder_false_pass=by_luck,
        worth=with_gain / (with_gain + by_luck) if with_gain + by_luck else None,
        gain_variance=spread.gain_variance,
        n_in_group=len(group.n_items) if any(np.isfinite(one).any() for one in needed) else 0,
    )


def _needed_above_group(cluster: Float[np.ndarray, "draw persona"], group: Float[np.ndarray, "draw member"]) -> Float[np.ndarray, " draw"]:
    """Return which gain `above_random_group` asks of each draw of luck, so many people's of a cluster and of a group that gains nothing."""
    if not group.shape[1]:
        return np.full(len(cluster), -np.inf)
    low, _, detectable = welch_interval(cluster, group, power=WANTED_POWER)
    return np.where(detectable <= NOTABLE_GAIN, RESOLUTION - low, -np.inf)


def _deviations(scores: list[np.ndarray]) -> tuple[float, float]:
    """Return (deviation of items inside a persona, deviation of true persona means), by the moments of a one-way layout.

    With one item per persona the two cannot be separated, and the items get all of it.
    """
    means = np.array([float(own.mean()) for own in scores])
    freedom = sum(len(own) - 1 for own in scores)
    spread = float(means.var(ddof=1)) if len(means) > 1 else 0.0
    if not freedom:
        return float(np.sqrt(spread)), 0.0
    item_variance = sum(float(np.sum((own - own.mean()) ** 2)) for own in scores) / freedom
    noise = float(np.mean([item_variance / len(own) for own in scores]))
    return float(np.sqrt(item_variance)), float(np.sqrt(max(0.0, spread - noise)))


def _smallest(passes: Callable[[float], float], wanted: float) -> float | None:
    """Return the smallest gain of at most 1 that passes with the wanted probability, to a hundredth of a point; None when even 1 does not.

    The noise is the same for all gains, so the probability rises with the gain.
    """
    low, high = 0.0, 1.0
    if passes(high) < wanted:
        return None
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (low, middle) if passes(middle) >= wanted else (middle, high)
    return high
