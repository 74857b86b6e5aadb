"""Whatever a prepared and clustered study still lacks, in this process: gate, adapters, answers, comparison, registration."""

from collections.abc import Iterable
from itertools import chain

from clusterlora.errors import OutOfMemory
from clusterlora.methods import METHODS
from clusterlora.planning.attempts import next_request
from clusterlora.planning.gate_step import next_gate_step
from clusterlora.planning.study_state import read_state
from clusterlora.planning.training_groups import remaining_groups
from clusterlora.ports.run_log import RunLog
from clusterlora.ports.stores import Stores
from clusterlora.requests import EvaluationRequest, TrainingGroup
from clusterlora.settings import Study
from clusterlora.stages.compare import compare_study
from clusterlora.stages.evaluate import evaluate
from clusterlora.stages.judge import judge_rung
from clusterlora.stages.persona_signal import signal_of_study
from clusterlora.stages.refine import refine_clusters
from clusterlora.stages.register import register_models
from clusterlora.stages.train import train_group


def run_remaining(study_name: str, stores: Stores, log: RunLog) -> None:
    """Train, answer, compare and register what is missing, in the order of the flow; what is there is found by its key."""
    study = stores.studies.study(study_name)
    signal_of_study(study_name, stores, log)
    while step := next_gate_step(read_state(study_name, stores)):
        train_groups(study, chain.from_iterable(step.waves), stores, log)
        evaluate(EvaluationRequest(study_name=study_name, part="gate", rung=step.rung.name), stores, log)
        judge_rung(study_name, step.rung.name, stores)
    while True:
        train_groups(study, chain.from_iterable(remaining_groups(read_state(study_name, stores))), stores, log)
        if not refine_clusters(study_name, stores, log):
            break
    if any(METHODS[name].retrieves for name in read_state(study_name, stores).settings.methods):
        evaluate(EvaluationRequest(study_name=study_name, part="choices"), stores, log)
    evaluate(EvaluationRequest(study_name=study_name), stores, log)
    compare_study(study_name, stores, log)
    register_models(study_name, stores, log)


def train_groups(study: Study, groups: Iterable[TrainingGroup], stores: Stores, log: RunLog) -> int:
    """Return how many adapters were trained; each group halves its micro-batch as often as memory demands."""
    return sum(_train_group(study, group, stores, log) for group in groups)


def _train_group(study: Study, group: TrainingGroup, stores: Stores, log: RunLog) -> int:
    while True:
        request = next_request(study, group, stores)
        try:
            return train_group(request, stores, log)
        except OutOfMemory:
            if request.micro_batch == 1:
                raise
            log.note(
                f"out of memory at micro-batch {request.micro_batch}; going on with {request.micro_batch // 2}, which changes no result"
            )
