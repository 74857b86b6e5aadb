"""Cache keys are stable: trained adapters are found whatever the fields are called."""

from typing import Any

from clusterlora.adapters.cache_key import cache_keys
from clusterlora.method_settings import MergeSettings
from clusterlora.recipe import Recipe
from clusterlora.settings import PreparedModel
from clusterlora.values import AdapterSpec, Dataset, Dialogue, Persona, Turn


def spec(name: str, persona_ids: tuple[str, ...], *, patience: int | None = None, kind: str = "lora", **more: Any) -> AdapterSpec:
    return AdapterSpec(name=name, persona_ids=persona_ids, recipe=Recipe(kind=kind, rank=4, patience=patience), **more)


def persona(name: str) -> Persona:
    turns = (Turn("user", "hi"), Turn("assistant", f"hello {name}"))
    train = Dialogue("d0", turns, (("time", "noon"),), "train")
    return Persona(name, f"{name} is brief.", (train, Dialogue("d1", (Turn("user", "bye"), Turn("assistant", "bye")), (), "val")))


SPECS = (
    spec("unified", ("ann", "bob")),
    spec("warm", ("ann",), init_from="unified"),
    spec("residual", ("bob",), frozen_adapter="unified", patience=2),
    spec("merged", ("ann", "bob"), merge_of=("warm", "unified"), merging=MergeSettings()),
    spec("told", ("ann",), persona_in_prompt=True),
    spec("prefix", ("ann",), kind="prefix"),
    spec("theirs", ("ann",), imported="abc"),
)


def test_a_quantised_base_changes_the_key_of_everything_that_is_trained_on_it() -> None:
    people = Dataset((persona("ann"), persona("bob")))
    keys = [
        cache_keys(SPECS, people, base_revision="base", model=PreparedModel(quantisation=quantisation))
        for quantisation in ("none", "nf4", "int8")
    ]
    assert all(len({of_base[spec.name] for of_base in keys}) == (1 if spec.imported else 3) for spec in SPECS)


def test_the_cache_keys_of_every_kind_of_adapter_are_those_of_studies_that_are_stored() -> None:
    people = Dataset((persona("ann"), persona("bob")))
    assert cache_keys(SPECS, people, base_revision="base", model=PreparedModel(dtype="auto")) == {  # pyrefly: ignore[bad-argument-type]
        "unified": "9e4df6f24d3d3866",
        "warm": "6c9fd81c0ab6f15f",
        "residual": "8329d4f18fbef9a1",
        "merged": "04845ed2541f480c",
        "told": "0c680eed7a0ccb72",
        "prefix": "392726b6eca74da8",
        "theirs": "cab34706caea460a",
    }
