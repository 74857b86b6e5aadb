"""Into how many runs a study is divided is decided once, by the workers that are there when it is first started."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from clusterlora.metadata import Workers
from clusterlora.planning.study_state import StudyState, read_state
from clusterlora.planning.training_groups import remaining_groups
from clusterlora.ports.stores import Stores
from clusterlora.progress.work import assumed_clustering
from clusterlora.requests import EvaluationRequest
from clusterlora.settings import MOST_SHARDS, RuntimeSettings, Study
from clusterlora.stages.prepare import prepare_study
from clusterlora.stages.probe import ready
from clusterlora.stores.json_codec import from_json
from tasks import fan_out, planning
from tests.fixtures.stages import LOG


def started(study: Study, n_workers: int, stores: Stores) -> StudyState:
    prepare_study(study, stores, LOG)
    return ready(study.name, n_workers, stores, LOG)


def of_shards(study: Study, n: int | None) -> Study:
    return replace(study, runtime=RuntimeSettings(shards=n))


@pytest.fixture
def study(seven: Study) -> Study:
    """Return a study of seven people that leaves its shards open."""
    return of_shards(seven, None)


def fan_out_groups(state: StudyState) -> set[str]:
    waves = remaining_groups(replace(state, clustering=assumed_clustering(state)))
    return {group.name for wave in waves for group in wave if group.name.startswith("fan-out")}


@pytest.mark.parametrize(("n_workers", "n_shards"), [(1, 2), (2, 2), (3, 3), (8, 8), (5000, MOST_SHARDS)])
def test_there_is_a_shard_for_each_worker_and_two_at_least(n_workers: int, n_shards: int, study: Study, stores: Stores) -> None:
    state = started(study, n_workers, stores)
    assert (state.n_workers, state.n_shards) == (n_workers, n_shards)
    assert read_state(study.name, stores) == state
    # A refresh of the study, which copies its settings, decides anew.
    assert state.settings.runtime.shards is None


def test_a_study_that_goes_on_with_more_workers_or_fewer_keeps_its_groups(study: Study, stores: Stores) -> None:
    groups = fan_out_groups(started(study, 3, stores))
    assert groups == {f"fan-out-{number}-of-3" for number in (1, 2, 3)}
    for n_workers in (8, 1):
        state = started(study, n_workers, stores)
        assert state.n_workers == n_workers
        assert fan_out_groups(state) == groups


def test_a_number_that_is_given_holds_and_stays_when_it_is_left_out_later(study: Study, stores: Stores) -> None:
    assert started(of_shards(study, 5), 8, stores).n_shards == 5
    assert started(study, 8, stores).n_shards == 5
    assert started(of_shards(study, 1), 8, stores).n_shards == 1


def test_a_study_of_an_earlier_version_goes_on_with_the_two_shards_it_began_with(study: Study, stores: Stores) -> None:
    prepare_study(of_shards(study, 2), stores, LOG)
    assert started(study, 8, stores).n_shards == 2
    assert from_json(Workers, '{"n": 8}') == Workers(8, 2)


def test_answers_are_divided_into_as_many_runs(study: Study, stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    started(study, 3, stores)
    asked: list[EvaluationRequest] = []

    def submit(request: EvaluationRequest) -> Any:
        asked.append(request)
        return SimpleNamespace(result=lambda: None)

    monkeypatch.setattr("tasks.study_task.from_environment", lambda: stores)
    monkeypatch.setattr(fan_out, "shards_of", planning.shards_of.fn)
    monkeypatch.setattr(fan_out, "dispatch_evaluation", SimpleNamespace(submit=submit))
    monkeypatch.setattr(fan_out, "wait", lambda _futures: None)
    fan_out.evaluate_all(study.name, parts=("choices", "test"))
    assert [(one.part, one.shard, one.shards) for one in asked] == [(part, n, 3) for part in ("choices", "test") for n in (1, 2, 3)]
