"""The share of personas that each rung of the ladder must improve: a ladder of equal rungs passes by luck again and again."""

from clusterlora.evaluation.statistics import sign_test_count
from clusterlora.settings import GateSettings


def later_rungs_can_pass(settings: GateSettings, *, n_personas: int, n_rungs: int) -> bool:
    """Return whether the sign test of a later rung can be met at all: by everybody, if by nobody else."""
    return settings.later_rungs_luck is None or n_rungs < 2 or _asked(settings.later_rungs_luck, n_personas, n_rungs) <= n_personas


def _asked(luck: float, n_personas: int, n_rungs: int) -> int:
    return sign_test_count(n_personas, luck / (n_rungs - 1))


def required_share(settings: GateSettings, *, n_personas: int, rung: int, n_rungs: int) -> float:
    """Return the share of personas that a rung must improve.

    The first rung is judged by `share_improved` alone. Each later one must also pass a one-sided sign test whose level is
    `later_rungs_luck` over the number of later rungs (Bonferroni), so that trying on adds at most that much luck. Where even
    everybody is not enough, everybody is asked.

    Args:
        rung: its place in the ladder, 0 for the study's own configuration.
        n_rungs: of the ladder, that configuration included.
    """
    if rung == 0 or settings.later_rungs_luck is None:
        return settings.share_improved
    n_improved = min(n_personas, _asked(settings.later_rungs_luck, n_personas, n_rungs))
    return max(settings.share_improved, n_improved / n_personas)
