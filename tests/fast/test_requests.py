"""A deployment's request arrives where it is executed as the same value, and nothing else is accepted."""

import json
from dataclasses import asdict, replace
from typing import Any

import pytest
from prefect.exceptions import ParameterTypeError
from prefect.flows import Flow
from prefect.utilities.callables import parameter_schema

from clusterlora.errors import BadSettings
from clusterlora.method_settings import MergeSettings
from clusterlora.requests import (
    AssignmentRequest,
    EvaluationRequest,
    MergeRequest,
    PermutationRequest,
    PrivacyRequest,
    TrainingGroup,
    TrainRequest,
)
from clusterlora.settings import Study
from flows.assign import assign
from flows.evaluate import evaluate
from flows.merge import merge
from flows.permute import permute
from flows.privacy import privacy
from flows.train import train
from tasks.evaluation import evaluate_shard
from tasks.training import train_group

GROUP = TrainingGroup("cluster-00", "cluster 00", ("cluster-00", "unified"), rung="lower-lr")
ASKED = [
    (train, TrainRequest(study_name="mission", group=GROUP, micro_batch=2, attempt=3)),
    (evaluate, EvaluationRequest(study_name="mission", part="gate", rung="lower-lr")),
    (merge, MergeRequest(study_name="mission", merging=MergeSettings(kind="ties", density=0.5))),
    (permute, PermutationRequest(study=Study(name="mission", methods=("unified", "cluster")), times=3)),
    (privacy, PrivacyRequest(study_name="mission", prompts=100, words=6)),
    (assign, AssignmentRequest(study_name="mission", rows=({"persona_id": "ana", "prompt": "Hi", "response": "Hello"},))),
]
by_name = pytest.mark.parametrize(("flow", "request_value"), ASKED, ids=[flow.name for flow, _ in ASKED])


@by_name
def test_a_request_is_executed_as_it_was_asked(flow: Flow[..., Any], request_value: Any) -> None:
    sent = json.loads(json.dumps({"request": asdict(request_value)}))
    assert flow.validate_parameters(sent) == {"request": request_value}


@by_name
def test_a_request_with_an_unknown_field_is_refused(flow: Flow[..., Any], request_value: Any) -> None:
    with pytest.raises(ParameterTypeError, match="command"):
        flow.validate_parameters({"request": {**asdict(request_value), "command": "sh"}})


@by_name
def test_every_field_of_a_request_is_described_on_the_form(flow: Flow[..., Any], request_value: Any) -> None:
    definitions = parameter_schema(flow).definitions
    fields = definitions[type(request_value).__name__]["properties"]
    assert fields.keys() == asdict(request_value).keys()
    assert all(field.get("description") for field in fields.values())


def test_an_attempt_counts_from_one() -> None:
    with pytest.raises(ParameterTypeError):
        train.validate_parameters({"request": {**asdict(ASKED[0][1]), "attempt": 0}})


@pytest.mark.parametrize(("task", "asked"), [(train_group, ASKED[0][1]), (evaluate_shard, ASKED[1][1])])
def test_a_worker_of_another_version_does_nothing_and_says_which_it_is(task: Any, asked: Any) -> None:
    with pytest.raises(BadSettings, match=r"has clusterlora .*, and study mission is run by 0\.0\.9, engine 1; update the older checkout"):
        task.fn(replace(asked, version="0.0.9, engine 1"))
