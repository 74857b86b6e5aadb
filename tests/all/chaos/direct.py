"""One study from beginning to end in one process, without Prefect, as `clusterlora train`, `evaluate` and `compare` do it.

The process is forked from a server that has imported everything and loaded the models, so that a launch costs little. It is meant to be
killed at any moment and started again.
"""

import multiprocessing
import os
import sys
from collections.abc import Mapping
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path

from clusterlora.config import resolve
from clusterlora.errors import ClusterLoraError
from clusterlora.planning.attempts import next_request
from clusterlora.ports.run_log import SilentLog
from clusterlora.requests import EvaluationRequest
from clusterlora.settings import Study
from clusterlora.stages.cluster import cluster_study
from clusterlora.stages.compare import compare_study
from clusterlora.stages.evaluate import evaluate
from clusterlora.stages.judge import judge_rung
from clusterlora.stages.prepare import prepare_study
from clusterlora.stages.register import register_models
from clusterlora.stages.train import train_group
from clusterlora.wiring import from_environment
from tests.all.chaos.sabotage import prepare
from tests.fixtures.stages import missing_groups, plan_of

SETTINGS = Path(__file__).with_name("study.toml")


def run(study: Study) -> None:
    stores, log, name = from_environment(), SilentLog(), study.name
    prepare_study(study, stores, log)
    cluster_study(study.name, stores, log)
    for group in missing_groups(study, stores, tuple(plan_of(study, stores).specs)):
        train_group(next_request(study, group, stores), stores, log)
    evaluate(EvaluationRequest(study_name=name, part="gate", rung="own"), stores, log)
    judge_rung(name, "own", stores)
    for shard in (1, 2):
        evaluate(EvaluationRequest(study_name=name, shard=shard, shards=2), stores, log)
    compare_study(name, stores, log)
    register_models(name, stores, log)


def start_server(environment: Mapping[str, str]) -> None:
    """Start the server from which the studies of this process are forked, once; it has these variables for good."""
    before = dict(os.environ)
    os.environ.update(environment)
    multiprocessing.set_forkserver_preload(["tests.all.chaos.warm"])
    forkserver.ensure_running()
    os.environ.clear()
    os.environ.update(before)


def start(name: str, seed: int, environment: Mapping[str, str], log: Path) -> BaseProcess:
    """Start a study in a process of its own."""
    process = multiprocessing.get_context("forkserver").Process(target=_run, args=(name, seed, dict(environment), log))
    process.start()
    return process


def _run(name: str, seed: int, environment: dict[str, str], log: Path) -> None:
    with log.open("ab") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    os.environ.clear()
    os.environ.update(environment)
    prepare()
    main(name, seed)


def main(name: str, seed: int) -> None:
    """Run a study in this process; whoever has no fork server calls `python -m tests.all.chaos.direct NAME SEED`."""
    try:
        # Another seed per trial: the adapters of one must not be found by the next.
        run(resolve(None, SETTINGS, {"name": name, "recipe.seed": seed}))
    except (ClusterLoraError, OSError) as problem:
        raise SystemExit(f"error: {problem}") from problem


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
