"""Which dialogues an adapter learns."""

from collections.abc import Mapping

from clusterlora.values import AdapterSpec, Dialogue, Persona


def learned(spec: AdapterSpec, personas: Mapping[str, Persona]) -> tuple[tuple[Persona, tuple[Dialogue, ...]], ...]:
    """Return everybody whom an adapter learns from with the train dialogues that it learns: all, unless its spec names some."""
    if not spec.learns_from:
        return tuple((personas[p], personas[p].of_split("train")) for p in spec.persona_ids)
    named = {p: frozenset(ids) for p, ids in spec.learns_from}
    return tuple((personas[p], tuple(d for d in personas[p].of_split("train") if d.id in ids)) for p, ids in named.items())
