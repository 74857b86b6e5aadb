"""What a study refuses of a kind of adapter when its settings are resolved, and how adapters of a kind are combined."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from clusterlora.adapters.compositions import combined_weights
from clusterlora.config import check
from clusterlora.engine.stacked import Weights
from clusterlora.errors import BadData, BadSettings
from clusterlora.recipe import Recipe, problems
from clusterlora.settings import Study
from clusterlora.values import WeightedAdapter


def study_of(seven: Study, **changes: Any) -> Study:
    return replace(seven, recipe=replace(seven.recipe, kind="dora"), **changes)


def test_what_a_kind_cannot_do_is_refused_when_the_settings_are_resolved(seven: Study) -> None:
    with pytest.raises(BadSettings, match=r"recipe.kind = 'dora': hybrid adds adapters up, as is possible with lora or rslora; leave"):
        check(study_of(seven, methods=("unified", "hybrid")))
    with pytest.raises(BadSettings, match=r"recipe.kind = 'dora': merge adds adapters up"):
        check(study_of(seven, methods=("unified", "merge")))
    with pytest.raises(BadSettings, match=r"recipe.kind = 'dora': clustering.algorithm = 'gradient' reads the factors of adapters"):
        check(study_of(seven, clustering=replace(seven.clustering, algorithm="gradient")))
    with pytest.raises(BadSettings, match=r"recipe.kind = 'lorra': unknown adapter kind; did you mean lora"):
        check(replace(seven, recipe=replace(seven.recipe, kind="lorra")))
    check(study_of(seven))
    check(replace(seven, methods=("unified", "hybrid", "merge"), recipe=replace(seven.recipe, kind="rslora")))


def test_an_adapter_that_only_peft_can_add_is_used_alone_and_as_it_is(tmp_path: Path) -> None:
    alone = Weights(peft_folder=tmp_path)
    assert combined_weights([WeightedAdapter("a"), WeightedAdapter("b", 0.0)], lambda _name: alone) is alone
    with pytest.raises(BadData, match=r"1 a \+ 1 b: only adapters of the kinds lora and rslora can be weighted and added"):
        combined_weights([WeightedAdapter("a"), WeightedAdapter("b")], lambda _name: alone)
    with pytest.raises(BadData, match=r"0\.5 a: only adapters"):
        combined_weights([WeightedAdapter("a", 0.5)], lambda _name: alone)


def test_every_recipe_of_a_study_is_one_that_the_library_takes(seven: Study) -> None:
    assert list(problems(seven.recipe)) == list(problems(Recipe())) == []
    assert list(problems(replace(Recipe(), dropout=1.0, schedule="steep"))) == [  # pyright: ignore[reportArgumentType]
        "recipe.dropout = 1.0: use at most 0.9",
        "recipe.schedule = 'steep': use 'linear' or 'cosine' or 'constant'",
    ]
