"""Removal of a study from MLflow: its experiment with all runs, and the versions that it registered.

MLflow's interface only marks runs, experiments and versions as deleted. What it can remove for good is removed here: artifacts, tags of
versions, and registered models of which nothing is left. `server_databases.purge_mlflow` removes the rest from a server of this machine.
"""

import uuid
from collections.abc import Iterable, Sequence

from mlflow import MlflowClient
from mlflow.entities import Experiment, Run, ViewType
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import RestException

from clusterlora.stores.champion_history import CHAMPION, history, move_champion
from clusterlora.stores.mlflow_server import pages

_FORGOTTEN = "clusterlora.forgotten"
"""The tag of an experiment that is removed: the study that it was of."""
_WHY_BACK = "the version before had learned from somebody who was forgotten"


def forget_studies(client: MlflowClient, studies: Sequence[str]) -> tuple[str, ...]:
    """Remove what can be removed of studies; return the names of their experiments, which are marked as deleted and renamed.

    The studies' own names are free again. Doing it again goes on where it was interrupted.
    """
    # Of all first: an alias must not go back to a version that is about to be deleted.
    _drop_versions(client, studies)
    return tuple(experiment for study in studies for experiment in _forget_experiment(client, study))


def _forget_experiment(client: MlflowClient, study: str) -> tuple[str, ...]:
    experiment = client.get_experiment_by_name(study)
    if experiment is not None:
        if experiment.lifecycle_stage != "active":
            # Only an active experiment can be renamed.
            client.restore_experiment(experiment.experiment_id)
        client.set_experiment_tag(experiment.experiment_id, _FORGOTTEN, study)
        client.rename_experiment(experiment.experiment_id, f"{study}.forgotten.{uuid.uuid4().hex[:8]}")
    renamed = _renamed(client, study)
    for one in renamed:
        for run in _runs(client, one.experiment_id):
            _delete_artifacts(client, run)
        if one.lifecycle_stage == "active":
            client.delete_experiment(one.experiment_id)
    return tuple(one.name for one in renamed)


def run_ids(client: MlflowClient, study: str) -> frozenset[str]:
    """Return the runs of a study's experiment."""
    experiment = client.get_experiment_by_name(study)
    return frozenset(run.info.run_id for run in _runs(client, experiment.experiment_id)) if experiment else frozenset()


def has_run(client: MlflowClient, run_id: str | None) -> bool:
    """Return whether there is such a run that is not deleted."""
    try:
        return run_id is not None and client.get_run(run_id).info.lifecycle_stage == "active"
    except RestException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise


def _renamed(client: MlflowClient, study: str) -> list[Experiment]:
    tagged = f"tags.`{_FORGOTTEN}` = '{study}'"
    return list(pages(client.search_experiments, view_type=ViewType.ALL, filter_string=tagged))


def _runs(client: MlflowClient, experiment_id: str) -> Iterable[Run]:
    return pages(client.search_runs, [experiment_id], run_view_type=ViewType.ALL)


def _delete_artifacts(client: MlflowClient, run: Run) -> None:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    repository = get_artifact_repository(str(run.info.artifact_uri), tracking_uri=client.tracking_uri)
    for entry in repository.list_artifacts(None):
        repository.delete_artifacts(entry.path)


def _drop_versions(client: MlflowClient, studies: Sequence[str]) -> None:
    """Delete the versions that studies registered; a champion among them hands the alias back to the last one that is left."""
    found = [one for study in studies for one in pages(client.search_model_versions, f"tags.study = '{study}'", max_results=1000)]
    own = [one for one in found if one.tags.get("study") in studies]
    for name in sorted({one.name for one in own}):
        numbers = {str(one.version) for one in own if one.name == name}
        others = [
            one for one in pages(client.search_model_versions, f"name = '{name}'", max_results=1000) if str(one.version) not in numbers
        ]
        if not others:
            client.delete_registered_model(name)
            continue
        _hand_back(client, name, numbers, others)
        for one in own:
            if one.name == name:
                for tag in one.tags:
                    client.delete_model_version_tag(name, str(one.version), tag)
                client.delete_model_version(name, str(one.version))
        # The model shows the card of its latest version.
        latest = max(others, key=lambda version: int(version.version))
        client.update_registered_model(name, description=latest.description or "")


def _hand_back(client: MlflowClient, name: str, dropped: set[str], others: list[ModelVersion]) -> None:
    if str(client.get_registered_model(name).aliases.get(CHAMPION)) not in dropped:
        return
    left = {str(one.version) for one in others}
    earlier = next((move.version for move in reversed(history(client, name)) if move.version in left), None)
    if earlier is not None:
        move_champion(client, name, earlier, _WHY_BACK)
    else:
        client.delete_registered_model_alias(name, CHAMPION)
