"""The model registry: what registration, verification and export use."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from clusterlora.ports.adapter_store import AdapterSet

PROMOTABLE = ("passed", "unbeaten", "gate refused")
"""Results of a comparison, by the tag `comparison`, after which a version may become champion: its method is the champion of the study's
comparison, shown to beat unified after a gate that passed it (passed) or refused it (gate refused), or it is unified, which nothing is
shown to beat (unbeaten). All others are `failed` or `not compared`. Versions that may become champion have the alias `candidate`."""


@dataclass(frozen=True, slots=True)
class About:
    """The description of a registered model: its card in Markdown, and tags to search by."""

    card: str
    tags: Mapping[str, str]

    @property
    def promotable(self) -> bool:
        """Whether the version may become champion."""
        return self.tags.get("comparison") in PROMOTABLE


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """A version in the registry. `whole` means that the model and all of its adapters are among its artifacts.

    `content` is its content digest, `uri` where its routes.json and its adapters can be downloaded from.
    """

    name: str
    version: str
    adapter_keys: tuple[str, ...]
    whole: bool
    content: str
    uri: str


class ModelRegistry(Protocol):
    """The registry of a study's models."""

    def register_router(
        self,
        study: str,
        *,
        routes: Mapping[str, Any],
        adapters: AdapterSet,
        champion: bool,
        model: str | None = None,
        about: "About | None" = None,
        root: str | None = None,
    ) -> str | None:
        """Add a version of `<study>` (or of `<study>-<model>`) that answers everybody, unless one with this content exists.

        Where the study is a refresh, `root` is the study whose model its champion is a version of.

        `routes` is a `stores.routing_table.RoutingTable` as plain JSON values: one adapter for everybody, or one composition per persona.
        Returns the version's URI; None where there is no registry. With `champion`, the alias champion moves to the version.
        """
        ...

    def champion(self, name: str) -> tuple[str, str] | None:
        """Return the study and the method of the version that is a model's champion; None where there is no such alias, or no registry."""
        ...

    def versions(self, study: str) -> tuple["ModelVersion", ...]:
        """Return the versions of the study's registered models."""
        ...

    def drop_version(self, name: str, version: str) -> None: ...
