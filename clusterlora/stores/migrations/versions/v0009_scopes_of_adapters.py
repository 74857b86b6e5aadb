"""Stored specs say in fields what the names of their adapters meant until then: whom they are for, seed, rung and folder."""

import json
import re
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

_NAME = re.compile(r"(?P<label>.+?)(?:\+(?P<rung>[a-z0-9-]+))?(?:\.s(?P<seed>\d+))?")
_FOLDER_OF_CLUSTERS = {
    "cluster": "lora_clusters",
    "cluster-residual": "lora_clusters",
    "random": "random_clusters",
    "imported": "imported_clusters",
    "merged": "merged_clusters",
    "heldout-cluster": "held_out",
}
_FOLDER_OF_PERSONS = {"persona": "personas", "residual": "residuals", "prefix": "prefixes"}
_OF_EVERYBODY = ("unified", "unified-longer", "unified-described", "heldout-unified")


def upgrade() -> None:
    connection = op.get_bind()
    adapters = sa.table("adapters", sa.column("key", sa.Text()), sa.column("spec", sa.Text()))
    for key, text in connection.execute(sa.select(adapters.c.key, adapters.c.spec)).all():
        spec = json.loads(text)
        described = json.dumps(spec | _fields(spec), sort_keys=True, separators=(",", ":"))
        connection.execute(sa.update(adapters).where(adapters.c.key == key).values(spec=described))


def _fields(spec: dict[str, Any]) -> dict[str, Any]:
    parsed = _NAME.fullmatch(spec["name"])
    assert parsed is not None, spec["name"]
    label, rung, seed = parsed["label"], parsed["rung"], int(parsed["seed"] or 0)
    fields: dict[str, Any] = {"seed": seed, "rung": rung, "variant_of": label if label != spec["name"] else None}
    if rung is not None and spec.get("merge_of"):
        # A merge in another way than the study's is called after it, which is no rung.
        fields |= {"rung": None, "variant_of": None}
    kind, _, number = label.rpartition("-")
    if label in _OF_EVERYBODY:
        return fields | {"scope": "everybody", "cluster": None, "folder": "held_out" if label == "heldout-unified" else ""}
    if kind in _FOLDER_OF_CLUSTERS and number.isdecimal():
        return fields | {"scope": "cluster", "cluster": int(number), "folder": _FOLDER_OF_CLUSTERS[kind]}
    if kind in _FOLDER_OF_PERSONS and len(spec["persona_ids"]) == 1:
        return fields | {"scope": "person", "cluster": None, "folder": _FOLDER_OF_PERSONS[kind]}
    return fields | {"scope": "group", "cluster": None, "folder": ""}
