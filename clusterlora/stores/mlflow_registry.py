"""Model versions: a routing table and its adapters as an MLflow model made from code, with no pickle and no copy of the base."""

import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException, RestException

from clusterlora.adapters.held import HeldAdapters
from clusterlora.adapters.shards import SUFFIX
from clusterlora.ports.adapter_store import AdapterSet
from clusterlora.ports.model_registry import About, ModelVersion
from clusterlora.stores.json_codec import to_json
from clusterlora.stores.mlflow_server import pages
from clusterlora.stores.routing_table import RoutingTable, content_of, read_routing_table

# MLflow copies this script into the model and runs it when the model is loaded. It is named, not imported: serving builds on stores.
_SCRIPT = Path(__file__).parents[1] / "serving" / "router_model.py"

CANDIDATE = "candidate"
_FILES = "adapter_files"
"""The tag with the number of folders and shards that hold a version's adapters."""
_SERVING_PACKAGES = ("mlflow", "torch", "transformers", "safetensors")
_EXAMPLE = [{"persona_id": "persona_000", "messages": [{"role": "user", "content": "Good evening, I am home."}]}]


def add_version(
    client: MlflowClient,
    run_id: str,
    name: str,
    table: RoutingTable,
    adapters: AdapterSet,
    about: About,
    *,
    root: str | None = None,
) -> str:
    """Return the version of model `name` with this content, made of artifacts of the run unless there is one already.

    The content key is a digest of the table, which holds the weights' digests, so a name is never used twice for different weights.
    The model is of the study of the table, or of its `root`.
    """
    content = content_of(to_json(table), adapters.keys)
    _make_model(client, name, {"study": root or table.study, "method": table.method, "base_model": table.model.base})
    for registered in client.search_model_versions(f"name = '{name}'"):
        if registered.tags.get("content") == content:
            # The same weights may have been compared again.
            for tag, value in about.tags.items():
                client.set_model_version_tag(name, str(registered.version), tag, value)
            _mark_candidate(client, name, str(registered.version), about)
            if about.card:
                _describe(client, name, str(registered.version), about.card)
            return str(registered.version)
    path = f"models/{name}/{content}"
    with tempfile.TemporaryDirectory() as temporary:
        model = Path(temporary) / "model"
        write_model(model, table, adapters)
        n_files = len(list((model / "artifacts" / "adapters").iterdir()))
        client.log_artifacts(run_id, str(model), path)
    tags = {
        **about.tags,
        "content": content,
        "study": table.study,
        "method": table.method,
        "base_model": table.model.base,
        "base_revision": table.base_revision,
        "adapters": str(len(adapters.keys)),
        _FILES: str(n_files),
    }
    created = client.create_model_version(name, source=f"runs:/{run_id}/{path}", run_id=run_id, tags=tags)
    _mark_candidate(client, name, str(created.version), about)
    if about.card:
        _describe(client, name, str(created.version), about.card)
    return str(created.version)


def _mark_candidate(client: MlflowClient, name: str, version: str, about: About) -> None:
    """Move the alias candidate to a version that may become champion; take it from one that may no longer."""
    if about.promotable:
        client.set_registered_model_alias(name, CANDIDATE, version)
    elif str(client.get_registered_model(name).aliases.get(CANDIDATE)) == version:
        client.delete_registered_model_alias(name, CANDIDATE)


def model_versions(client: MlflowClient, study: str) -> tuple[ModelVersion, ...]:
    """Return the versions that a study registered, and whether their artifacts are complete."""
    versions: list[ModelVersion] = []
    for registered in pages(client.search_model_versions, f"tags.study = '{study}'", max_results=1000):
        content, run_id = registered.tags.get("content"), registered.run_id
        if registered.tags.get("study") != study or content is None or run_id is None:
            continue
        path = f"models/{registered.name}/{content}"
        files = [Path(file.path) for file in _listed(client, run_id, f"{path}/artifacts/adapters")]
        has_model = f"{path}/MLmodel" in {file.path for file in _listed(client, run_id, path)}
        # Versions that were registered before shards have a folder per adapter.
        whole = has_model and len(files) == int(registered.tags.get(_FILES, registered.tags["adapters"]))
        has_shards = any(file.suffix == SUFFIX for file in files)
        in_routes = _keys_in_routes(client, run_id, f"{path}/artifacts/routes.json") if whole and has_shards else None
        keys = tuple(sorted(file.name for file in files)) if in_routes is None else in_routes
        uri = f"runs:/{run_id}/{path}/artifacts"
        versions.append(ModelVersion(registered.name, str(registered.version), keys, whole, content, uri))
    return tuple(versions)


def _listed(client: MlflowClient, run_id: str, path: str) -> list[Any]:
    try:
        return client.list_artifacts(run_id, path)
    except RestException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return []
        raise


def _keys_in_routes(client: MlflowClient, run_id: str, path: str) -> tuple[str, ...]:
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(client.download_artifacts(run_id, path, temporary))
        table = read_routing_table(file.read_text(encoding="utf-8"))
        return tuple(sorted(table.keys | table.names.keys()))


def _describe(client: MlflowClient, name: str, version: str, card: str) -> None:
    """Make the card the description of the version and of the model, which shows that of its latest version."""
    text = card.replace("{version}", version)
    client.update_model_version(name, version, description=text)
    client.update_registered_model(name, description=text)


def _make_model(client: MlflowClient, name: str, tags: Mapping[str, str]) -> None:
    try:
        client.create_registered_model(name, tags=dict(tags))
    except MlflowException:
        # It exists already; if not, this raises the actual error.
        registered_tags = client.get_registered_model(name).tags
        for tag, value in tags.items():
            if registered_tags.get(tag) != value:
                client.set_registered_model_tag(name, tag, value)


def write_model(model: Path, table: RoutingTable, adapters: AdapterSet) -> None:
    """Write an MLflow model folder: the script, routes.json and the adapters, PEFT folders and shards.

    Raises:
        BadData: the weights differ from those recorded in the table.
    """
    # Imported here: it takes seconds, and training runs, which import this module, never register.
    from mlflow import pyfunc

    with tempfile.TemporaryDirectory() as temporary:
        routes, written = Path(temporary) / "routes.json", Path(temporary) / "adapters"
        routes.write_text(to_json(table))
        adapters.write(written)
        table.refuse_other_weights(HeldAdapters.of_model(written), adapters.keys)
        artifacts: dict[str, Any] = {"routes": str(routes), "adapters": str(written)}
        pyfunc.save_model(
            path=str(model),
            python_model=str(_SCRIPT),
            artifacts=artifacts,
            signature=_signature(),
            input_example=_EXAMPLE,
            pip_requirements=[f"{package}=={version(package)}" for package in _SERVING_PACKAGES],
        )


def _signature() -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types.schema import Array, ColSpec, DataType, Map, Object, Property, Schema, TensorSpec

    message = Object([Property("role", DataType.string), Property("content", DataType.string)])
    inputs: list[ColSpec | TensorSpec] = [
        ColSpec(DataType.string, "persona_id"),
        ColSpec(Array(message), "messages"),
        ColSpec(Map(DataType.string), "context", required=False),
        ColSpec(DataType.long, "max_new_tokens", required=False),
    ]
    outputs: list[ColSpec | TensorSpec] = [ColSpec(DataType.string, name) for name in ("persona_id", "text", "answered_by")]
    return ModelSignature(inputs=Schema(inputs), outputs=Schema(outputs))
