"""The gate's next step: the rung to try, the adapters to train for it, and what is computed meanwhile."""

from dataclasses import dataclass

from clusterlora.planning.ladder import next_rung
from clusterlora.planning.study_state import StudyState
from clusterlora.planning.training_groups import Waves, gate_groups
from clusterlora.planning.work_plan import work_plan
from clusterlora.settings import Rung


@dataclass(frozen=True, slots=True, kw_only=True)
class GateStep:
    """One rung of the ladder, before it is judged."""

    rung: Rung
    cluster: int
    """The cluster on trial."""
    waves: Waves
    """The groups that train unified and that cluster, as far as they are missing."""
    estimates_power: bool
    """Whether the gate's power has yet to be estimated, from the base model's answers."""
    answers_baseline: bool
    """Whether the base model answers its test items while adapters are trained: it is compared, and the study has several shards."""


def next_gate_step(state: StudyState) -> GateStep | None:
    """Return the next rung to try with what it needs; None when one has passed, all were tried, or nothing is gated."""
    rung = next_rung(state)
    if rung is None:
        return None
    plan, study = work_plan(state, rung), state.settings
    assert plan.judged is not None, f"study {state.name} has a rung to try and no cluster to judge"
    return GateStep(
        rung=rung,
        cluster=plan.judged,
        waves=gate_groups(state, plan),
        estimates_power=state.power is None,
        answers_baseline="baseline" in study.methods and state.n_shards > 1,
    )
