"""Which stack of adapters answers whom: what a registered model is made of besides weights, as kept in its routes.json."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from clusterlora.settings import ModelSettings
from clusterlora.values import Exchange


@dataclass(frozen=True, slots=True)
class KeyedLayer:
    """An adapter by content key, scaled by `weight`."""

    key: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class KeyedStack:
    """A `values.Stack` whose adapters are named by content key."""

    layers: tuple[KeyedLayer, ...] = ()
    shots: int = 0
    described: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingTable:
    """How a registered model answers.

    `personas` maps a persona id to its stack, the empty one being the base model; `default` answers everybody else.
    `names` are the adapters' names by key, for people to read; `descriptions` are those of the personas whose prompt shows them,
    `exchanges` the train dialogues of those whose prompt shows some.
    """

    study: str
    method: str
    model: ModelSettings
    base_revision: str
    max_new_tokens: int
    default: KeyedStack
    personas: Mapping[str, KeyedStack] = field(default_factory=dict[str, KeyedStack])
    descriptions: Mapping[str, str | None] = field(default_factory=dict[str, str | None])
    exchanges: Mapping[str, tuple[Exchange, ...]] = field(default_factory=dict[str, tuple[Exchange, ...]])
    names: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def keys(self) -> frozenset[str]:
        """The keys of all adapters it needs."""
        return frozenset(layer.key for stack in (self.default, *self.personas.values()) for layer in stack.layers)
