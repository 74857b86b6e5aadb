"""Which adapter of a study should answer somebody new."""

from typing import Any

from prefect import flow, tags

from tasks.assignment import assign_personas
from tasks.run_names import study_tag


@flow(name="assign", flow_run_name="assign · {study_name}")
def assign(study_name: str, rows: tuple[dict[str, Any], ...] = (), path: str | None = None) -> list[dict[str, Any]]:
    """Return for every new persona whether to leave unified and for which cluster, with the margin and where the adapter is.

    Nothing is trained and nothing is stored; the table is an artifact of this run. Two examples are the least that can move somebody
    away from unified.

    Args:
        study_name: A study that has trained unified and all clusters.
        rows: The dialogues themselves, one object each, up to some hundred: {"persona_id": "ana", "prompt": "Make it cosy", "response":
            "Warm light at 40 %, Ana."} or {"persona_id": "ana", "messages": [{"role": "user", "text": "..."}, {"role": "assistant",
            "text": "..."}]}. They travel with the run, so workers need not share a disk.
        path: Instead of rows, a .jsonl, .csv or .parquet file, or an edgewise folder, as the worker of pool gpu sees it.
    """
    with tags(study_tag(study_name)):
        return assign_personas(study_name, rows, path)
