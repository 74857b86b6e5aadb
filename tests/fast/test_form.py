"""The form of a study: a preset fills what is left as it is, names are choices, and what cannot run here is not offered."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, get_args

import pytest
from prefect.utilities.callables import parameter_schema

from clusterlora.clustering import ALGORITHMS
from clusterlora.config import PRESETS, as_mapping, from_mapping, resolve
from clusterlora.data import SOURCES
from clusterlora.evaluation.metrics import METRICS
from clusterlora.form import MISSION, Preset, filled_in
from clusterlora.methods import METHODS
from clusterlora.settings import Study
from deployments.apply import local_deployments
from flows.study import study


def test_the_form_begins_with_the_mission_of_the_command_line() -> None:
    assert resolve("mission") == MISSION
    assert get_args(Preset) == tuple(PRESETS)
    shown = parameter_schema(study).model_dump()["properties"]["config"]["default"]
    assert from_mapping(shown) == MISSION


def test_a_preset_fills_what_was_left_as_it_is_and_nothing_that_was_changed() -> None:
    changed = replace(MISSION, name="mine", recipe=replace(MISSION.recipe, rank=4))
    assert filled_in(None, changed) is changed
    assert filled_in("quick", MISSION) == resolve("quick")
    assert filled_in("quick", changed) == resolve("quick", overrides={"name": "mine", "recipe.rank": 4})
    assert filled_in("demo", from_mapping({"name": "mine"})) == resolve("demo", overrides={"name": "mine"}), "a request without the page"


@pytest.mark.parametrize("preset", list(PRESETS))
def test_every_preset_can_be_chosen(preset: str) -> None:
    assert filled_in(preset, Study()) == filled_in(preset, MISSION) == resolve(preset)


def test_names_are_choices_presets_come_first_and_values_are_what_the_launcher_sends() -> None:
    schema: Mapping[str, Any] = parameter_schema(study).model_dump()
    assert [(name, field["position"]) for name, field in schema["properties"].items()] == [("preset", 0), ("config", 1)]
    groups = schema["definitions"]
    assert groups["Study"]["properties"]["methods"]["items"]["enum"] == list(METHODS)
    assert groups["DataSettings"]["properties"]["source"]["enum"] == list(SOURCES)
    assert groups["ClusteringSettings"]["properties"]["algorithm"]["enum"] == ["auto", *ALGORITHMS]
    assert groups["EvaluationSettings"]["properties"]["metrics"]["items"]["enum"] == list(METRICS)
    assert groups["EvaluationSettings"]["properties"]["headline"]["enum"] == list(METRICS)
    assert from_mapping(json.loads(json.dumps(as_mapping(MISSION)))) == MISSION


def test_deployments_to_containers_are_not_offered_on_one_machine() -> None:
    assert set(local_deployments()) == {
        "study",
        "gate",
        "compare",
        "assign",
        "merge",
        "permute",
        "refresh",
        "privacy",
        "forget",
        "watch",
        "train",
        "evaluate",
    }
