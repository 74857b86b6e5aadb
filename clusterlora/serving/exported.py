"""A folder that `registry export` has written, as a router."""

import json
from pathlib import Path
from typing import Any

from clusterlora.adapters.held import HeldAdapters
from clusterlora.errors import BadData
from clusterlora.models.base import base_revision
from clusterlora.models.device import usual_device
from clusterlora.serving import MOST_RESIDENT
from clusterlora.serving.elsewhere import BASE_FOLDER
from clusterlora.serving.export import BASE_ROUTE, adapter_digest
from clusterlora.serving.router import Router
from clusterlora.settings import PreparedModel
from clusterlora.stores.json_codec import from_plain, plain
from clusterlora.stores.routing_table import KeyedAdapter, KeyedComposition, RoutingTable


def router_of_export(folder: Path, *, n_resident: int = MOST_RESIDENT) -> Router:
    """Return the router of an exported folder; it answers as the registered model did.

    Raises:
        BadData: it is no such folder, or an adapter is missing or has another content than its name says, or is in GGUF.
        ModelUnavailable: its base model is not on this machine, or is another one here.
    """
    if any((folder / "adapters").glob("*.gguf")):
        raise BadData(f"{folder} is an export for llama.cpp, with adapters in GGUF; export the model with --format peft to serve it here")
    if (folder / "merged").is_dir():
        raise BadData(f"{folder} is an export of full weights, without adapters; export the model with --format peft to serve it here")
    file = folder / "routes.json"
    try:
        routes: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        # Written down and read again, every field is checked.
        table = from_plain(RoutingTable, plain(_table(folder, routes)))
    except (BadData, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as problem:
        raise BadData(f"{file} is not of a folder that `clusterlora registry export` has written ({problem}); export it again") from problem
    folders = {route: folder / "adapters" / route for route in table.keys}
    for route, adapter in folders.items():
        if not adapter.is_dir() or not route.endswith(f"-{adapter_digest(adapter)}"):
            raise BadData(f"{adapter} is missing or is not what was exported; export the model again")
    return Router(table, HeldAdapters(folders), device=usual_device(), n_resident=n_resident)


def _table(folder: Path, routes: dict[str, Any]) -> RoutingTable:
    for name in ("max_length", "max_new_tokens"):
        if int(routes[name]) < 1:
            raise ValueError(f"{name} is {routes[name]}")
    own_base = routes["base_model"] == BASE_FOLDER
    base = str((folder / BASE_FOLDER).resolve()) if own_base else routes["base_model"]
    model = PreparedModel(
        base=base,
        dtype=routes["dtype"],
        quantisation=routes["quantisation"],
        device_map=routes.get("device_map", "none"),
        system_prompt=routes["system_prompt"],
        template_arguments=tuple((str(name), str(value)) for name, value in routes["template_arguments"].items()),
        template_date=routes["template_date"],
        max_length=int(routes["max_length"]),
    )

    def composition(route: str) -> KeyedComposition:
        return KeyedComposition(() if route == BASE_ROUTE else (KeyedAdapter(route),))

    return RoutingTable(
        study=routes["study"],
        method="export",
        model=model,
        # The copied base has another config.json, hence another revision, than the one it was copied from.
        base_revision=base_revision(base) if own_base else routes["base_revision"],
        max_new_tokens=int(routes["max_new_tokens"]),
        labels=tuple(map(str, routes["labels"])),
        default=composition(routes["default"]),
        personas={persona_id: composition(route) for persona_id, route in routes["personas"].items()},
        names={name: name for name in {routes["default"], *routes["personas"].values()} - {BASE_ROUTE}},
    )
