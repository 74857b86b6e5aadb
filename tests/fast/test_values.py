"""Digests of values, and the equality and hash of data sets."""

import hashlib
import json
from dataclasses import asdict, replace

from hypothesis import given
from hypothesis import strategies as st

from clusterlora.recipe import Recipe
from clusterlora.values import AdapterSpec, Dataset, Dialogue, Persona, Turn, digest


@given(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,7}", fullmatch=True), st.lists(st.text(max_size=8), max_size=3), st.floats(1e-6, 1))
def test_a_digest_is_the_hash_of_canonical_json(name: str, people: list[str], rate: float) -> None:
    spec = AdapterSpec(name=name, persona_ids=tuple(people), recipe=Recipe(learning_rate=rate))
    text = json.dumps({"a": [asdict(spec)]}, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert digest({"a": (spec,)}, length=64) == hashlib.sha256(text.encode()).hexdigest()


def test_datasets_of_the_same_personas_with_other_dialogues_are_unequal() -> None:
    dialogue = Dialogue("d", (Turn("user", "hello"), Turn("assistant", "hi")))
    one = Dataset((Persona("p", None, (dialogue,)),))
    other = Dataset((Persona("p", None, (replace(dialogue, split="test"),)),))
    assert {one: 1, other: 2}[Dataset((Persona("p", None, (dialogue,)),))] == 1
    assert one != other
    assert one.digest != other.digest
