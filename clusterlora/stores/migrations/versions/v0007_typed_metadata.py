"""Metadata are one JSON value per kind, and the seconds of phases have a table in which parallel workers can add to them.

Before, both were in `facts`: one row per number or sentence, read together by whoever knew their names.
"""

import json
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_SECONDS = "seconds: "


def upgrade() -> None:
    kinds = op.create_table(
        "study_metadata",
        sa.Column("study", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["study"], ["studies.name"], name="fk_study_metadata_study"),
        sa.PrimaryKeyConstraint("study", "kind", name="pk_study_metadata"),
    )
    seconds = op.create_table(
        "phase_seconds",
        sa.Column("study", sa.Text(), nullable=False),
        sa.Column("phase", sa.Text(), nullable=False),
        sa.Column("part", sa.Text(), nullable=False),
        sa.Column("seconds", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["study"], ["studies.name"], name="fk_phase_seconds_study"),
        sa.PrimaryKeyConstraint("study", "phase", "part", name="pk_phase_seconds"),
    )
    facts_by_study: dict[str, dict[str, Any]] = {}
    for study, name, value in op.get_bind().execute(sa.text("select study, name, value from facts")):
        facts_by_study.setdefault(study, {})[name] = json.loads(value)
    for study, facts in facts_by_study.items():
        rows = [{"study": study, "kind": kind, "value": json.dumps(value)} for kind, value in _kinds(facts).items()]
        timed = [{"study": study, **_phase(name), "seconds": value} for name, value in facts.items() if name.startswith(_SECONDS)]
        for table, new in ((kinds, rows), (seconds, timed)):
            if new:
                op.bulk_insert(table, new)
    op.drop_table("facts")


def _kinds(facts: dict[str, Any]) -> dict[str, Any]:
    kinds: dict[str, Any] = {name: facts[name] for name in ("signal", "gate_power") if name in facts}
    provenance = ("clusterlora_version", "git_revision", "data_digest", "base_revision", "n_personas", "n_dialogues")
    if all(name in facts for name in provenance):
        kinds["provenance"] = {name: facts[name] for name in provenance}
    if "mlflow_run" in facts:
        kinds["tracker_page"] = {"address": facts["mlflow_run"]}
    if "ari_truth" in facts:
        kinds["truth_agreement"] = {"adjusted_rand_index": facts["ari_truth"]}
    for digest, points in facts.get("scale", {}).items():
        kinds["reference_points"] = {**points, "measured_on": digest}
    if "gate_decisions" in facts:
        kinds["gate_decisions"] = {"decisions": facts["gate_decisions"]}
    if "refinement_rounds" in facts:
        kinds["refinement"] = {"rounds_done": facts["refinement_rounds"]}
    if facts.get("imported_clusters"):
        kinds["imported_adapters"] = {"weights_by_cluster": sorted([int(k), weights] for k, weights in facts["imported_clusters"].items())}
    if "imported_results" in facts:
        kinds["imported_scores"] = {"scores_by_file": facts["imported_results"]}
    if "champion" in facts and "conclusion" in facts:
        scores = [_score(method, score) for method, score in facts.get("scores", {}).items()]
        kinds["comparison_summary"] = {"champion": facts["champion"], "sentence": facts["conclusion"], "scores": scores}
    if "champion_uri" in facts:
        kinds["registered_champion"] = {"uri": facts["champion_uri"]}
    return kinds


def _score(method: str, score: dict[str, Any]) -> dict[str, Any]:
    numbers = {name: value for name, value in score.items() if name not in ("personas", "items")}
    return {"method": method, **numbers, "n_personas": score["personas"], "n_items": score["items"]}


def _phase(name: str) -> dict[str, str]:
    """Split `train cluster-00`, `evaluate test 1/2` and `merge-ties` into a phase and its part."""
    words = name.removeprefix(_SECONDS)
    if words.startswith("merge-"):
        return {"phase": "merge", "part": words.removeprefix("merge-")}
    n_words = 2 if words.startswith("evaluate ") else 1
    return {"phase": " ".join(words.split(" ")[:n_words]), "part": " ".join(words.split(" ")[n_words:])}
