"""The recipes that a study tries, as child runs at MLflow: their parameters, and the val loss of every round."""

from collections.abc import Sequence

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag

from clusterlora.ports.tracker import TrialRun
from clusterlora.stores.json_codec import plain
from clusterlora.stores.mlflow_run import now
from clusterlora.stores.mlflow_server import pages
from clusterlora.stores.mlflow_view import TRIALS_TAG, trials_view

_KIND = "clusterlora.run"
_TRIAL = f"tags.`{_KIND}` = 'trial'"


def log_trials(client: MlflowClient, parent: Run, trials: Sequence[TrialRun], study: str) -> None:
    """Log a round of trials, each to the run that has its name, or to a new one; the experiment gets a view of them."""
    experiment_id = parent.info.experiment_id
    client.set_experiment_tag(experiment_id, TRIALS_TAG, trials_view(_TRIAL, created_at=now()))
    run_ids = _run_ids(client, experiment_id)
    for trial in trials:
        tags = {_KIND: "trial", "study": study, "method": trial.method, "mlflow.parentRunId": parent.info.run_id}
        run_id = run_ids.get(trial.name) or client.create_run(experiment_id, tags=tags, run_name=trial.name).info.run_id
        params = [Param(name, str(plain(value))) for name, value in trial.params.items()]
        values = {"tuning/rounds": trial.round, "tuning/personas": trial.n_personas}
        values |= {} if trial.loss is None else {"val/loss": trial.loss}
        # The step is the round, so a round that is logged again is the same point.
        metrics = [Metric(name, float(value), now(), trial.round) for name, value in values.items()]
        client.log_batch(run_id, metrics=metrics, params=params, tags=[RunTag("tuning.round", str(trial.round))])
        client.set_terminated(run_id, "FAILED" if trial.loss is None else "FINISHED")


def _run_ids(client: MlflowClient, experiment_id: str) -> dict[str, str]:
    """Return the ids of the trials' runs by name."""
    return {run.info.run_name or "": run.info.run_id for run in pages(client.search_runs, [experiment_id], filter_string=_TRIAL)}
