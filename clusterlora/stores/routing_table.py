"""Which composition of adapters answers which persona: the routes.json of a registered model."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from clusterlora.adapters.held import HeldAdapters
from clusterlora.adapters.weights import refuse_other_weights
from clusterlora.errors import BadData
from clusterlora.settings import PreparedModel
from clusterlora.stores.json_codec import from_json, from_plain
from clusterlora.values import Exchange, Ranking, ShotSource, digest


@dataclass(frozen=True, slots=True)
class KeyedAdapter:
    """An adapter by content key, scaled by `weight`."""

    key: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class KeyedComposition:
    """A `values.AdapterComposition` whose adapters are named by content key."""

    adapters: tuple[KeyedAdapter, ...] = ()
    shots: int = 0
    persona_in_prompt: bool = False
    ranking: Ranking = "embedding"
    shots_from: ShotSource = "own"


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingTable:
    """How a registered model answers.

    Where there are `labels`, an answer is the likeliest of these; else it is generated, up to `max_new_tokens`.
    `personas` maps a persona id to its composition, the empty one being the base model; `default` answers everybody else.
    `names` are the adapters' readable names by key, and `weights_sha256` their digests, which are checked whenever weights are loaded;
    versions registered without digests have none. `descriptions` are those of the personas whose prompt shows them, `exchanges` the
    train dialogues of the personas whose prompt, or that of somebody in their cluster, shows some; `mates` are the personas of the cluster
    of those whose prompt may show all of theirs.
    """

    study: str
    method: str
    model: PreparedModel
    base_revision: str
    max_new_tokens: int
    labels: tuple[str, ...] = ()
    default: KeyedComposition
    personas: Mapping[str, KeyedComposition] = field(default_factory=dict[str, KeyedComposition])
    descriptions: Mapping[str, str | None] = field(default_factory=dict[str, str | None])
    exchanges: Mapping[str, tuple[Exchange, ...]] = field(default_factory=dict[str, tuple[Exchange, ...]])
    mates: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    names: Mapping[str, str] = field(default_factory=dict[str, str])
    weights_sha256: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def keys(self) -> frozenset[str]:
        """The keys of all adapters it needs."""
        return frozenset(adapter.key for composition in (self.default, *self.personas.values()) for adapter in composition.adapters)

    def refuse_other_weights(self, adapters: HeldAdapters, keys: Iterable[str]) -> None:
        """Check that the adapters of these keys are as they were recorded. Raises BadData."""
        for key in sorted(keys):
            refuse_other_weights(key, self.weights_sha256.get(key), adapters.sha256(key))


_FORMER_NAMES = {"layers": "adapters", "described": "persona_in_prompt"}
"""Fields of a composition by their names in routes.json of models that an earlier clusterlora registered."""


def read_routing_table(text: str) -> RoutingTable:
    """Return the table in a routes.json.

    Raises:
        BadData: the text is no routing table; names the field.
    """
    table = from_json(dict[str, Any], text)
    if "default" in table:
        table["default"] = _with_current_names(table["default"])
    if isinstance(personas := table.get("personas"), dict):
        table["personas"] = {persona_id: _with_current_names(composition) for persona_id, composition in personas.items()}
    return from_plain(RoutingTable, table)


def _with_current_names(composition: Any) -> Any:
    if not isinstance(composition, dict):
        return composition
    return {_FORMER_NAMES.get(name, name): value for name, value in composition.items()}


def other_artifacts(artifacts: Path, content: str | None, recorded: Mapping[str, str] | None = None) -> str:
    """Return how a folder of routes.json and adapters/ differs from what was registered as a version; empty when it does not.

    Args:
        content: the version's content digest in the registry; models of other programs have none.
        recorded: digests by key for versions that were registered without them.
    """
    try:
        routes = (artifacts / "routes.json").read_text(encoding="utf-8")
        adapters = HeldAdapters.of_model(artifacts / "adapters")
        if content not in (None, content_of(routes, adapters.keys)):
            return "its routes or the keys of its adapters differ"
        table = read_routing_table(routes)
        replace(table, weights_sha256={**(recorded or {}), **table.weights_sha256}).refuse_other_weights(adapters, adapters.keys)
    except (OSError, UnicodeDecodeError, BadData) as problem:
        return str(problem)
    return ""


def content_of(routes: str, keys: Iterable[str]) -> str:
    """Return the content digest of a registered version: over the text of its routes.json and its adapters' keys."""
    return digest([routes, sorted(keys)])
