"""The model registry as people use it: what is there, what is it, which version is the champion, and its files."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from clusterlora.errors import BadData, BadSettings, UnknownName
from clusterlora.stores.mlflow_server import MlflowServer
from clusterlora.stores.routing_table import other_artifacts

CHAMPION = "champion"


@dataclass(frozen=True, slots=True)
class Version:
    """A version of a registered model. `compared` says what the comparison of its study found of its method."""

    name: str
    version: str
    aliases: tuple[str, ...]
    created: str
    tags: Mapping[str, str]
    card: str

    @property
    def passed(self) -> bool:
        """Whether a comparison found nothing better than its method."""
        return self.tags.get("comparison") == "passed"


class Registry:
    """The registry of an MLflow server."""

    def __init__(self, uri: str, *, patience_seconds: float = 10.0) -> None:
        """Remember the server's address. Raises BadSettings when it is none."""
        self._server = MlflowServer(uri, patience_seconds=patience_seconds)
        self._client = self._server.client

    def versions(self, study: str | None = None) -> tuple[Version, ...]:
        """Return the latest version of every registered model, and beside it those with an alias, by name."""

        def read() -> list[Version]:
            wanted = f"tags.study = '{study}'" if study else None
            found: list[Version] = []
            for model in self._client.search_registered_models(filter_string=wanted, max_results=1000):
                versions = sorted(self._of(model.name), key=lambda v: int(v.version))
                found += [v for v in versions if v.aliases or v is versions[-1]]
            return found

        return tuple(self._server.call("the list of models", read))

    def version(self, asked: str) -> Version:
        """Return what `NAME`, `NAME@alias` or `NAME/version` means; a name alone is its champion, else its latest. Raises UnknownName."""
        name, _, alias = asked.removeprefix("models:/").partition("@")
        name, _, number = name.partition("/")
        versions = self._server.call(f"model {name}", lambda: self._of(name))
        if not versions:
            raise UnknownName(f"there is no registered model {name!r}; see: clusterlora registry list")
        found = [v for v in versions if (not number or v.version == number) and (not alias or alias in v.aliases)]
        if not found:
            known = ", ".join(f"{v.version} ({', '.join(v.aliases)})" if v.aliases else v.version for v in versions)
            raise UnknownName(f"model {name} has no version {number or '@' + alias}; it has {known}")
        champions = [v for v in found if CHAMPION in v.aliases]
        return (champions or sorted(found, key=lambda v: int(v.version)))[-1]

    def promote(self, chosen: Version, *, forced_because: str | None = None) -> None:
        """Move the champion's alias to a version that its study's comparison found best; a forced move is recorded with its reason.

        Raises:
            BadSettings: the comparison did not, or there was none.
        """
        if not chosen.passed and not forced_because:
            says = chosen.tags.get("comparison_says", "its study has not compared it")
            raise BadSettings(
                f"{chosen.name} version {chosen.version} (method {chosen.tags.get('method', '?')}) is not promoted: {says} "
                "Compare again, or give --force REASON, which is kept with the version"
            )

        def move() -> None:
            self._client.set_registered_model_alias(chosen.name, CHAMPION, chosen.version)
            moment = datetime.now(UTC).isoformat(timespec="seconds")
            self._client.set_model_version_tag(chosen.name, chosen.version, "promoted", moment)
            if forced_because:
                self._client.set_model_version_tag(chosen.name, chosen.version, "promoted_by_force", forced_because)

        self._server.call(f"alias {CHAMPION}", move)

    def download(self, chosen: Version, folder: Path) -> Path:
        """Fetch a version's files into a folder; return that of its artifacts: routes.json and adapters/<key>/.

        Raises:
            BadData: they are not those that were registered.
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

    def _source(self, chosen: Version) -> str:
        return str(self._client.get_model_version(chosen.name, chosen.version).source)

    def _of(self, name: str) -> list[Version]:
        try:
            aliases = self._client.get_registered_model(name).aliases
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return []
            raise
        by_version: dict[str, list[str]] = {}
        for alias, version in aliases.items():
            by_version.setdefault(str(version), []).append(alias)
        return [_version(found, tuple(sorted(by_version.get(str(found.version), ())))) for found in self._search(name)]

    def _search(self, name: str) -> list[ModelVersion]:
        return list(self._client.search_model_versions(f"name = '{name}'", max_results=1000))


def registry_at(uri: str | None) -> Registry:
    """Return the registry of a tracking server. Raises BadSettings when there is none."""
    if not uri:
        raise BadSettings("there is no model registry without MLflow; start it with `clusterlora up`, or set MLFLOW_TRACKING_URI")
    return Registry(uri)


def _version(found: ModelVersion, aliases: tuple[str, ...]) -> Version:
    created = datetime.fromtimestamp((found.creation_timestamp or 0) / 1000, UTC).isoformat(timespec="seconds")
    return Version(found.name, str(found.version), aliases, created, dict(found.tags), found.description or "")
