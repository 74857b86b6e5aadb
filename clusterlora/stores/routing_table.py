"""Which stack of adapters answers whom: what a registered model is made of besides weights, as kept in its routes.json."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from clusterlora.errors import BadData
from clusterlora.settings import ModelSettings
from clusterlora.stores.files import refuse_other_weights
from clusterlora.stores.json_codec import from_json
from clusterlora.values import Exchange, digest


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
    `names` are the adapters' names by key, for people to read, and `weights_sha256` their digests, which every use is checked against;
    versions registered before digests were have none. `descriptions` are those of the personas whose prompt shows them,
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
    weights_sha256: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def keys(self) -> frozenset[str]:
        """The keys of all adapters it needs."""
        return frozenset(layer.key for stack in (self.default, *self.personas.values()) for layer in stack.layers)

    def refuse_other_weights(self, folders: Mapping[str, Path]) -> None:
        """Check that folders hold the adapters of these keys as they were recorded. Raises BadData."""
        for key, folder in sorted(folders.items()):
            refuse_other_weights(key, self.weights_sha256.get(key), folder)


def other_artifacts(artifacts: Path, content: str | None, recorded: Mapping[str, str] | None = None) -> str:
    """Return how a folder of routes.json and adapters/<key>/ differs from what a version was registered with; empty when it does not.

    Args:
        content: the version's identity in the registry; models of other programs have none.
        recorded: digests by key for versions that were registered without them.
    """
    try:
        routes = (artifacts / "routes.json").read_text(encoding="utf-8")
        folders = {folder.name: folder for folder in sorted((artifacts / "adapters").iterdir())}
        if content not in (None, content_of(routes, folders)):
            return "its routes or the keys of its adapters are others"
        table = from_json(RoutingTable, routes)
        replace(table, weights_sha256={**(recorded or {}), **table.weights_sha256}).refuse_other_weights(folders)
    except (OSError, UnicodeDecodeError, BadData) as problem:
        return str(problem)
    return ""


def content_of(routes: str, keys: Iterable[str]) -> str:
    """Return what identifies a registered version: a digest of the text of its routes.json and of its adapters' keys."""
    return digest([routes, sorted(keys)])
