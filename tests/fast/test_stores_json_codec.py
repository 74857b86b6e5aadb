"""Values are unchanged by JSON, and malformed JSON is refused with the name of the field."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import pytest
from annotated_types import Ge
from hypothesis import given
from hypothesis import strategies as st

from clusterlora.errors import BadData
from clusterlora.recipe import Recipe
from clusterlora.settings import DataSettings, Rung, Study
from clusterlora.stores.json_codec import from_json, to_json
from clusterlora.values import AdapterComposition, AdapterSpec, Criterion, Turn, WeightedAdapter


@dataclass(frozen=True, slots=True)
class Everything:
    number: float
    label: Literal["a", "b"]
    maybe: Annotated[int, Ge(0)] | None
    pairs: tuple[tuple[str, float], ...]
    nested: tuple[Turn, ...]
    by_name: dict[str, tuple[int, ...]]
    flag: bool = False


@given(
    st.builds(
        Everything,
        number=st.floats(allow_nan=False),
        label=st.sampled_from(["a", "b"]),
        maybe=st.none() | st.integers(),
        pairs=st.lists(st.tuples(st.text(), st.floats(allow_nan=False))).map(tuple),
        nested=st.lists(st.builds(Turn, role=st.sampled_from(["user", "assistant"]), text=st.text())).map(tuple),
        by_name=st.dictionaries(st.text(), st.lists(st.integers()).map(tuple)),
        flag=st.booleans(),
    )
)
def test_what_is_written_is_read_back_equal(value: Everything) -> None:
    assert from_json(Everything, to_json(value)) == value


def test_a_whole_study_survives() -> None:
    study = Study(name="s", data=DataSettings(columns=(("prompt", "question"),)), runtime=Study().runtime, recipe=Recipe(rank=4))
    assert from_json(Study, to_json(study)) == study


def test_an_adapter_spec_and_a_stack_survive() -> None:
    spec = AdapterSpec(name="cluster-00", persona_ids=("../../x", "p\u2028"), recipe=Recipe(), init_from="unified")
    assert from_json(AdapterSpec, to_json(spec)) == spec
    composition = AdapterComposition((WeightedAdapter("unified"), WeightedAdapter("residual", 0.25)), shots=3)
    assert from_json(AdapterComposition, to_json(composition)) == composition


def test_not_a_number_survives() -> None:
    criterion = Criterion("mean_similarity", math.nan, 0.83, False, None, None, "nothing to average")
    assert math.isnan(from_json(Criterion, to_json(criterion)).value)


def test_a_whole_number_is_read_where_a_float_is_asked() -> None:
    read = from_json(WeightedAdapter, '{"name": "a", "weight": 1}')
    assert type(read.weight) is float


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('{"name": "r", "epoch": 3}', "unknown fields epoch"),
        ('{"epochs": 3}', "incomplete"),
        ('{"name": "r", "epochs": "3"}', r"Rung\.epochs is '3', not int"),
        ('{"name": "r", "epochs": true}', r"Rung\.epochs is True, not int"),
        ('{"name": "r", "init": "cluster"}', r"Rung\.init is 'cluster', none of 'base', 'unified'"),
        ("[]", "Rung is \\[\\], not dict"),
        ('{"name": ', "not JSON"),
    ],
)
def test_json_of_another_shape_is_refused_naming_the_field(text: str, complaint: str) -> None:
    with pytest.raises(BadData, match=complaint):
        from_json(Rung, text)


def test_a_nested_field_is_named_by_its_path() -> None:
    text = '{"number": 1, "label": "a", "maybe": null, "pairs": [["a", 1], ["b", "2"]], "nested": [], "by_name": {}}'
    with pytest.raises(BadData, match=r"Everything\.pairs\[1\]\[1\] is '2', not float"):
        from_json(Everything, text)
    with pytest.raises(BadData, match=r"Everything\.by_name\['k'\]\[0\] is 'x', not int"):
        from_json(Everything, text.replace('"2"', "2").replace('"by_name": {}', '"by_name": {"k": ["x"]}'))
    with pytest.raises(BadData, match=r"Everything\.pairs\[0\] has 1 values, not 2"):
        from_json(Everything, text.replace('["a", 1]', '["a"]'))


def test_a_set_is_refused_because_its_order_is_not_stable() -> None:
    with pytest.raises(TypeError, match="set"):
        to_json({"ids": {1, 2}})
