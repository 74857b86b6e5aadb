"""The model registry as people use it: list its models, look up a version, promote it to champion, download its files."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from clusterlora.errors import BadData, BadSettings, UnknownName
from clusterlora.ports.model_registry import PROMOTABLE
from clusterlora.stores.champion_history import CHAMPION, Move, before, history, move_champion
from clusterlora.stores.mlflow_server import MlflowServer, pages
from clusterlora.stores.routing_table import other_artifacts

_WEBHOOK = "clusterlora"
_AT_ONCE = 1000
"""Models or versions of a page."""


@dataclass(frozen=True, slots=True)
class Version:
    """A version of a registered model. Its tags hold what the comparison of its study found about its method."""

    name: str
    version: str
    aliases: tuple[str, ...]
    created: str
    tags: Mapping[str, str]
    card: str

    @property
    def promotable(self) -> bool:
        """Whether its study's comparison made its method the champion."""
        return self.tags.get("comparison") in PROMOTABLE


class Registry:
    """The registry of an MLflow server."""

    def __init__(self, uri: str, *, patience_seconds: float = 10.0) -> None:
        """Remember the server's address. Raises BadSettings when it is not an http address."""
        self._server = MlflowServer(uri, patience_seconds=patience_seconds)
        self._client = self._server.client

    def versions(self, study: str | None = None) -> tuple[Version, ...]:
        """Return every registered model's latest version and its versions with an alias, by name."""

        def read() -> list[Version]:
            filter_string = f"tags.study = '{study}'" if study else None
            listed: list[Version] = []
            for model in pages(self._client.search_registered_models, filter_string=filter_string, max_results=_AT_ONCE):
                versions = sorted(self._versions_of(model.name), key=lambda v: int(v.version))
                listed += [v for v in versions if v.aliases or v is versions[-1]]
            return listed

        return tuple(self._server.call("the list of models", read))

    def version(self, reference: str) -> Version:
        """Return the version `NAME`, `NAME@alias`, `NAME@version` or `NAME/version`; a name alone is its champion, else its latest.

        Raises:
            UnknownName: there is no such model, or no such version of it.
        """
        name, _, alias = reference.removeprefix("models:/").partition("@")
        name, _, number = name.partition("/")
        versions = self._server.call(f"model {name}", lambda: self._versions_of(name))
        if not versions:
            raise UnknownName(f"there is no registered model {name!r}; see: clusterlora registry list")
        matching = [v for v in versions if (not number or v.version == number) and (not alias or alias in (*v.aliases, v.version))]
        if not matching:
            existing = ", ".join(f"{v.version} ({', '.join(v.aliases)})" if v.aliases else v.version for v in versions)
            raise UnknownName(f"model {name} has no version {number or '@' + alias}; it has {existing}")
        champions = [v for v in matching if CHAMPION in v.aliases]
        return (champions or sorted(matching, key=lambda v: int(v.version)))[-1]

    def promote(self, chosen: Version, *, forced_because: str | None = None) -> None:
        """Move the champion alias to a version of the method that won its study's comparison; a forced move is recorded with its reason.

        Raises:
            BadSettings: its method is not the champion of the comparison, or nothing was compared, and the move is not forced.
        """
        if not chosen.promotable and not forced_because:
            reason = chosen.tags.get("comparison_says", "its study has not compared it")
            raise BadSettings(
                f"{chosen.name} version {chosen.version} (method {chosen.tags.get('method', '?')}) is not promoted: {reason} "
                "Compare again, or give --force REASON, which is kept with the version"
            )

        def move() -> None:
            move_champion(self._client, chosen.name, chosen.version, forced_because or "promoted by hand")
            moment = datetime.now(UTC).isoformat(timespec="seconds")
            self._client.set_model_version_tag(chosen.name, chosen.version, "promoted", moment)
            if forced_because:
                self._client.set_model_version_tag(chosen.name, chosen.version, "promoted_by_force", forced_because)

        self._server.call(f"alias {CHAMPION}", move)

    def history(self, name: str) -> tuple[Move, ...]:
        """Return every move of a model's champion alias, oldest first. Raises UnknownName where there is no such model."""
        self.version(name)
        return self._server.call(f"the champions of {name}", lambda: history(self._client, name))

    def studies(self, name: str) -> dict[str, str]:
        """Return the study of every version of a model, by the version's number."""
        versions = self._server.call(f"the versions of {name}", lambda: self._versions_of(name))
        return {version.version: version.tags.get("study", "") for version in versions}

    def rollback(self, name: str, why: str) -> Version:
        """Move the champion alias back to the version that had it before, and return that.

        Raises:
            UnknownName: there is no such model, or its champion is the first.
        """
        target = before(self.history(name))
        if target is None:
            raise UnknownName(f"model {name} has had no champion before its present one; choose a version: clusterlora registry promote")
        chosen = self.version(f"{name}/{target}")
        self._server.call(f"alias {CHAMPION}", lambda: move_champion(self._client, name, target, why, back=True))
        return chosen

    def download(self, chosen: Version, folder: Path) -> Path:
        """Download a version's files into a folder; return the folder of its artifacts: routes.json and adapters/<key>/.

        Raises:
            BadData: the files differ from those that were registered.
        """

        def fetch() -> Path:
            run_id, _, path = self._source(chosen).removeprefix("runs:/").partition("/")
            return Path(self._client.download_artifacts(run_id, path, str(folder))) / "artifacts"

        artifacts = self._server.call(f"the files of {chosen.name}", fetch)
        if problem := other_artifacts(artifacts, chosen.tags.get("content")):
            raise BadData(
                f"the files of {chosen.name} version {chosen.version} are not what was registered: {problem}; remove the version with "
                f"`clusterlora study verify --repair`, then run study {chosen.tags.get('study')} again, which registers it anew"
            )
        return artifacts

    def call_when_alias_moves(self, url: str | None) -> None:
        """Let the server post to an address when an alias of a registered model moves; with None no more.

        Raises:
            ServiceDown: the server is away, or takes no such address (its own default are https addresses of public hosts).
        """

        def change() -> None:
            for webhook in self._client.list_webhooks(max_results=100):
                if webhook.name == _WEBHOOK:
                    self._client.delete_webhook(webhook.webhook_id)
            if url is not None:
                self._client.create_webhook(_WEBHOOK, url, ["model_version_alias.created"], description="clusterlora notify")

        self._server.call("the webhook of the registry", change)

    def _source(self, chosen: Version) -> str:
        return str(self._client.get_model_version(chosen.name, chosen.version).source)

    def _versions_of(self, name: str) -> list[Version]:
        try:
            aliases = self._client.get_registered_model(name).aliases
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return []
            raise
        aliases_by_version: dict[str, list[str]] = {}
        for alias, version in aliases.items():
            aliases_by_version.setdefault(str(version), []).append(alias)
        return [_version(one, tuple(sorted(aliases_by_version.get(str(one.version), ())))) for one in self._search(name)]

    def _search(self, name: str) -> list[ModelVersion]:
        return list(pages(self._client.search_model_versions, f"name = '{name}'", max_results=_AT_ONCE))


def registry_at(uri: str | None) -> Registry:
    """Return the registry of a tracking server. Raises BadSettings when there is none."""
    if not uri:
        raise BadSettings("there is no model registry without MLflow; start it with `clusterlora up`, or set MLFLOW_TRACKING_URI")
    return Registry(uri)


def _version(model: ModelVersion, aliases: tuple[str, ...]) -> Version:
    created = datetime.fromtimestamp((model.creation_timestamp or 0) / 1000, UTC).isoformat(timespec="seconds")
    return Version(model.name, str(model.version), aliases, created, dict(model.tags), model.description or "")
