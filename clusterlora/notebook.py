"""A finished study for a notebook or a program: its results as pandas frames, its figures, and the router as an object that answers.

Nothing here trains, asks or writes; `clusterlora.Study` is this class.
"""

import os
from collections.abc import Mapping
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from clusterlora.comparison.table import row_records, summary_records
from clusterlora.errors import BadData, ServiceDown, UnknownName
from clusterlora.planning.study_state import StudyState, read_state
from clusterlora.planning.work_plan import WorkPlan, work_plan
from clusterlora.ports.run_log import SilentLog
from clusterlora.ports.stores import Stores
from clusterlora.stages.compare import Compared, compared
from clusterlora.wiring import from_environment, results_home

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from clusterlora.comparison.result import Comparison
    from clusterlora.serving.router import Router


class Study:
    """One study as its database has it; `reload` reads it again. Means, intervals and tests are over people, as in the report."""

    def __init__(self, name: str, *, home: str | Path | None = None, stores: Stores | None = None) -> None:
        """Open a study.

        Args:
            home: the folder of the results, in the place of that which the commands of this shell use; other addresses are the
                environment's, but for an SQLite file in the environment's own folder.
            stores: stores that are open already, in the place of those of the environment.

        Raises:
            UnknownName: there is no such folder, or no such study; names those that there are.
        """
        self._stores = stores or _stores(home)
        self.name = name
        self._state  # noqa: B018  (an unknown name is refused here, not at the first result)

    def __repr__(self) -> str:
        return f"Study({self.name!r}, status={self.status!r})"

    @property
    def status(self) -> str:
        """Where the study is: running, finished, waiting, ..."""
        return self._state.status

    def reload(self) -> None:
        """Forget what was read, so that the next result is that of the present database."""
        for name in ("_state", "_plan", "_compared"):
            self.__dict__.pop(name, None)

    @property
    def sentence(self) -> str:
        """The verdict in a sentence, as the report begins with it."""
        return self.comparison.sentence

    @property
    def champion(self) -> str | None:
        """The method that won; None where no method did."""
        return self.comparison.champion

    @property
    def comparison(self) -> "Comparison":
        """The whole comparison as a value.

        Raises:
            BadData: nothing has been evaluated yet.
        """
        return self._compared.comparison

    def table(self) -> pd.DataFrame:
        """Return a row per method, best first: means, difference to unified with interval, corrected p, win rate, outcome."""
        return pd.DataFrame(summary_records(self.comparison)).set_index("method")

    def scores(self) -> pd.DataFrame:
        """Return a row per method, training seed, persona and test item, with prompt, reference, answer and every metric."""
        return pd.DataFrame(row_records(self._compared.rows, self.comparison.metrics))

    def contrasts(self) -> pd.DataFrame:
        """Return a row per pair of methods that was tested beside those with unified: controls, and champion against runner-up."""
        columns = ["method", "other", "is_control"]
        rows = [
            {"method": c.method, "other": c.other, "is_control": c.is_control}
            | {name: value for name, value in asdict(c.difference).items() if name != "by_cluster"}
            for c in self.comparison.contrasts
        ]
        return pd.DataFrame(rows) if rows else pd.DataFrame(columns=columns)

    def adapters(self) -> pd.DataFrame:
        """Return a row per trained adapter, by its cache key.

        `planned_as` is its name in the study's plan, None for refused rungs and trials.
        """
        # Before the clustering there may be no plan, and no adapter either.
        planned = {key: name for name, key in self._plan.keys.items()} if self._state.adapters else {}
        rows = {
            adapter.key: {
                "name": adapter.name,
                "planned_as": planned.get(adapter.key),
                "scope": adapter.spec.scope,
                "cluster": adapter.spec.cluster,
                "n_personas": len(adapter.spec.persona_ids),
                "persona_ids": adapter.spec.persona_ids,
                "kind": adapter.spec.recipe.kind,
                "rank": adapter.spec.recipe.rank,
                "steps": adapter.steps,
                "train_tokens": adapter.train_tokens,
                "seconds": adapter.seconds,
                "first_loss": adapter.first_loss,
                "last_loss": adapter.last_loss,
                "n_bytes": adapter.n_bytes,
            }
            for adapter in self._state.adapters
        }
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("key")

    def assignments(self) -> pd.DataFrame:
        """Return a row per persona: cluster, place on the map of the clusters, and how many dialogues are in each split."""
        clustering = self._state.clustering
        clusters = clustering.cluster_by_persona() if clustering else {}
        places = {persona_id: (x, y) for persona_id, x, y in clustering.map_2d} if clustering else {}
        rows = [
            {"persona_id": p.id, "cluster": clusters.get(p.id)}
            | dict(zip(("x", "y"), places.get(p.id, (None, None)), strict=True))
            | {f"n_{split}": len(p.of_split(split)) for split in ("train", "val", "test")}
            for p in self._state.dataset.personas
        ]
        return pd.DataFrame(rows).set_index("persona_id")

    def routes(self) -> pd.DataFrame:
        """Return a row per persona and a column per method: the adapters that answer, as chosen on val with the study's own seed."""
        methods = self._state.settings.methods
        rows: dict[str, dict[str, str]] = {}
        for route in self._stores.studies.routes(self.name):
            if route.seed == 0 and route.method in methods:
                rows.setdefault(route.persona_id, {})[route.method] = " + ".join(route.composition.adapter_names) or "base model"
        return pd.DataFrame.from_dict(rows, orient="index", columns=list(methods)).rename_axis("persona_id")

    def curves(self) -> pd.DataFrame:
        """Return a row per adapter, split and step: the mean loss in nats per response token, after every step (train) or epoch (val)."""
        names = {adapter.key: adapter.name for adapter in self._state.adapters}
        rows = [
            {"key": key, "name": names[key], "split": curve.split, "step": step, "loss": loss}
            for key, curves in self._stores.studies.learning_curves(self.name).items()
            for curve in curves
            for step, loss in enumerate(curve.losses, start=1)
        ]
        return pd.DataFrame(rows, columns=["key", "name", "split", "step", "loss"])

    def figure(self) -> "Figure":
        """Return the comparison's figure: means with intervals, every person, every cluster."""
        from clusterlora.comparison.figure import compose

        return compose(self.comparison, self.name)

    def cluster_map(self) -> "Figure":
        """Return the map of the clusters.

        Raises:
            BadData: the personas are not clustered yet.
        """
        from clusterlora.report.cluster_map import compose_map

        if self._state.clustering is None:
            raise BadData(f"study {self.name} has no clustering yet; run its cluster step first")
        return compose_map(self._state.clustering, self.name)

    def router(self, method: str | None = None, *, device: str | None = None) -> "Router":
        """Return what answers everybody as a method does, by default the champion; its `answer` takes what a registered model takes.

        Args:
            device: where the base model is loaded; the first GPU, or the CPU without one.

        Raises:
            UnknownName: the study compares no such method.
            BadData: there is no champion, or an adapter is not trained.
        """
        from clusterlora.adapters.held import HeldAdapters
        from clusterlora.models.device import usual_device
        from clusterlora.registry.routing import routing_table
        from clusterlora.serving.router import Router
        from clusterlora.stores.json_codec import to_json
        from clusterlora.stores.routing_table import read_routing_table

        methods = self._state.settings.methods
        chosen = method or self.champion
        if chosen is None:
            raise BadData(f"study {self.name} has no champion; name the method to answer with, one of {', '.join(methods)}")
        if chosen not in methods:
            raise UnknownName(f"study {self.name} compares no method {chosen!r}; known: {', '.join(methods)}")
        table = read_routing_table(to_json(routing_table(self._state, self._plan, chosen, self._stores)))
        return Router(table, HeldAdapters.of_stores(table.keys, self._stores), device=device or usual_device())

    @cached_property
    def _state(self) -> StudyState:
        return read_state(self.name, self._stores)

    @cached_property
    def _plan(self) -> WorkPlan:
        return work_plan(self._state)

    @cached_property
    def _compared(self) -> Compared:
        return compared(self._state, self._plan, self._stores, SilentLog())


def _stores(home: str | Path | None) -> Stores:
    environment = _with_home(os.environ, home) if home else {**os.environ, **_results_here()}
    folder = results_home(environment)
    if not folder.is_dir():
        raise UnknownName(f"there is no folder of studies {str(folder)!r}; give home=, or set CLUSTERLORA_HOME")
    return from_environment(environment)


def _with_home(environment: Mapping[str, str], home: str | Path) -> Mapping[str, str]:
    """Return an environment with this folder of results, and without the SQLite file in that which the environment names."""
    given = dict(environment) | {"CLUSTERLORA_HOME": str(home)}
    other, address = results_home(environment).resolve(), given.get("CLUSTERLORA_DATABASE_URL", "")
    if address.startswith("sqlite") and f"{other}{os.sep}" in address and other != Path(home).resolve():
        del given["CLUSTERLORA_DATABASE_URL"]
    return given


def _results_here() -> Mapping[str, str]:
    """Return folder and database that the commands of this shell use; nothing where only the wheel is installed, which has no servers."""
    from clusterlora.cli.orchestration import results_here

    try:
        return results_here()
    except ServiceDown:
        return {}
