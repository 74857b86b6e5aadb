"""The layout of charts that a study's experiment offers in MLflow's UI, in its menu of views.

MLflow has no call for it: its UI keeps a view as a tag of the experiment, in JSON inside JSON, and reads any tag of that form.
"""

import json
from collections.abc import Mapping
from typing import Any

VIEW = "training"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"

TRIALS_TAG = "mlflow.sharedViewState.trials"

KIND_TAG = "mlflow.experimentKind"
KIND_OF_TRAINING = "custom_model_development"
"""The kind that opens on training runs. MLflow's UI reads it where it has no switch between kinds of work; with the switch, what a browser
has chosen counts (`mlflow.workflowType_v1` in its local storage, which the login page sets), and `workflowType` in an address before it."""
PAGE_QUERY = f"viewStateShareKey={VIEW}&compareRunsMode=CHART&workflowType=machine_learning"
"""What an experiment's address ends in to show the charts of this view."""

_NAME = "Training runs"
# The sections have the names that MLflow gives to metrics of these kinds.
_LINES: Mapping[str, tuple[str, ...]] = {
    "train": ("train/loss",),
    "System metrics": (
        "system/cpu_utilization_percentage",
        "system/system_memory_usage_megabytes",
        "system/gpu_0_utilization_percentage",
        "system/gpu_0_memory_usage_megabytes",
    ),
}
_BARS: Mapping[str, tuple[str, ...]] = {"train": ("train/seconds", "train/tokens", "train/tokens_per_second")}
_TRIED = ("learning_rate", "epochs", "rank", "alpha", "dropout", "target_modules", "init")
_TAGS = ("method", "micro_batch", "outcome", "peak_memory")


def view(runs: str, *, created_at: int) -> str:
    """Return the tag's value: the runs that a filter finds, their columns, and a chart for each metric that any of them has.

    Args:
        runs: MLflow's filter for the runs to show.
        created_at: milliseconds since 1970.
    """
    state = {
        "searchFilter": runs,
        "selectedColumns": [f"tags.`{tag}`" for tag in _TAGS],
        "compareRunSections": [{"uuid": name, "name": name, "display": True, "isReordered": True} for name in _LINES],
        "isAccordionReordered": True,
        "compareRunCharts": [*_charts("LINE", _LINES), *_charts("BAR", _BARS)],
        # Without groups the runs are folded into the study's own, and their charts are empty.
        "groupBy": {"aggregateFunction": "average", "groupByKeys": [{"mode": "tag", "groupByData": "method"}]},
        "useGroupedValuesInCharts": False,
        "hideEmptyCharts": True,
    }
    return json.dumps({"name": _NAME, "createdAt": created_at, "state": json.dumps(state)})


def trials_view(runs: str, *, created_at: int) -> str:
    """Return the tag's value for the recipes that a study tries: one line per trial through its parameters to its val loss."""
    chart = {
        "uuid": "recipes",
        "type": "PARALLEL",
        "metricSectionId": "recipes",
        "selectedParams": list(_TRIED),
        "selectedMetrics": ["val/loss"],
        "runsCountToCompare": 100,
        "showAllRuns": True,
        "deleted": False,
        "isGenerated": False,
    }
    state = {
        "searchFilter": runs,
        "orderByKey": "metrics.`val/loss`",
        "orderByAsc": True,
        "selectedColumns": ["tags.`method`", *(f"params.`{name}`" for name in _TRIED), "metrics.`val/loss`", "metrics.`tuning/rounds`"],
        "compareRunSections": [{"uuid": "recipes", "name": "recipes", "display": True, "isReordered": True, "columns": 1}],
        "isAccordionReordered": True,
        "compareRunCharts": [chart],
        # MLflow takes a chart of parameters for empty.
        "hideEmptyCharts": False,
    }
    return json.dumps({"name": "Trials of recipes", "createdAt": created_at, "state": json.dumps(state)})


def _charts(kind: str, metrics_by_section: Mapping[str, tuple[str, ...]]) -> list[dict[str, Any]]:
    own: dict[str, Any] = {}
    if kind == "LINE":
        own = {"scaleType": "linear", "xAxisScaleType": "linear", "xAxisKey": "step", "yAxisKey": "metric", "lineSmoothness": 0}
    return [
        {
            "uuid": metric,
            "type": kind,
            "metricSectionId": section,
            "metricKey": metric,
            "selectedMetricKeys": [metric],
            "runsCountToCompare": 20,
            "deleted": False,
            "isGenerated": False,
            **own,
        }
        for section, metrics in metrics_by_section.items()
        for metric in metrics
    ]
