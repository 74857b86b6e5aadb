"""Which stack of adapters answers whom: what a registered model is made of besides weights, as kept in its routes.json."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from clusterlora.settings import ModelSettings


@dataclass(frozen=True, slots=True)
class KeyedLayer:
    """An adapter by content key, scaled by `weight`."""

    key: str
    weight: float = 1.0


KeyedStack = tuple[KeyedLayer, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingTable:
    """How a registered model answers.

    `personas` maps a persona id to its stack, the empty one being the base model; `default` answers everybody else.
    `names` are the adapters' names by key, for people to read; `descriptions` those of the personas when the prompt shows them.
    """

    study: str
    method: str
    model: ModelSettings
    base_revision: str
    max_new_tokens: int
    default: KeyedStack
    personas: Mapping[str, KeyedStack] = field(default_factory=dict[str, KeyedStack])
    descriptions: Mapping[str, str | None] = field(default_factory=dict[str, str | None])
    names: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def keys(self) -> frozenset[str]:
        """The keys of all adapters it needs."""
        return frozenset(layer.key for stack in (self.default, *self.personas.values()) for layer in stack)
