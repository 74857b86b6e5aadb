"""`python -m benchmarks.load --out docs`: eight writers against one study database and one MLflow server; writes scale.json and scale.md.

The database is a real PostgreSQL and then SQLite, the MLflow server is real, and every writer is a process of its own.
"""

import argparse
import json
import multiprocessing
import os
import resource
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.scale import DIALOGUES, page
from clusterlora.settings import Recipe, Study, prepared
from clusterlora.stores.sql import SqlStudyStore
from clusterlora.values import AdapterSpec, Answer, Attempt, Dataset, Dialogue, Persona, TrainedAdapter, Turn
from tests.all.chaos.place import place

SPLITS = ("train", "train", "train", "val", "test")
METRICS = ("embedding_similarity", "rouge_l", "nll")
TEXT = "Of course. The lights in the living room are at thirty percent now, and the heating will be at twenty degrees by seven. "
"""What the assistant says: 120 characters, as long as an answer of the mission."""


def people(n_personas: int, n_dialogues: int, *, fond_of: str = "plants") -> Dataset:
    """Return a data set of the mission's shape: three fifths train, a fifth val, a fifth test."""
    return Dataset(
        tuple(
            Persona(
                f"persona_{p:07d}",
                f"Calm, exact, fond of {fond_of}.",
                tuple(
                    Dialogue(
                        f"d{d}",
                        (Turn("user", f"Question {d} of {p}, please."), Turn("assistant", f"{TEXT}{p}")),
                        split=SPLITS[d % len(SPLITS)],
                    )
                    for d in range(n_dialogues)
                ),
            )
            for p in range(n_personas)
        )
    )


def write_results(
    url: str, writer: int, writers: int, n_personas: int, n_items: int, methods: Sequence[str]
) -> tuple[list[str], float, float]:
    """Save this writer's share of adapters, one by one as trainings do, and of answers.

    Returns what went wrong, and the processor seconds that adapters and answers took here.
    """
    errors: list[str] = []
    store = SqlStudyStore(url)
    mine = range(writer, n_personas, writers)

    def attempt(what: Callable[[], object]) -> None:
        try:
            what()
        except Exception as error:  # noqa: BLE001  (whatever reaches the user is what is counted)
            errors.append(f"{type(error).__name__}: {error}")

    attempt(lambda: store.open_attempt("load", Attempt(f"fan-out-{writer}", 1, 2, "running")))
    began = time.process_time()
    for p in mine:
        spec = AdapterSpec(name=f"persona-{p}", persona_ids=(f"persona_{p:07d}",), recipe=Recipe())
        adapter = TrainedAdapter(f"{p:016x}", spec.name, spec, 45, 9000, 1.0, 3.0, 1.0, 100_000, "run", "runs:/run/x", "0" * 64)
        attempt(lambda adapter=adapter: store.save_adapter("load", adapter))
    adapters_kept = time.process_time()
    for method in methods:
        answers = [
            Answer(f"{method}-{p}", f"d{i}", f"persona_{p:07d}", "test", TEXT, tuple((metric, 0.5) for metric in METRICS))
            for p in mine
            for i in range(n_items)
        ]
        attempt(lambda answers=answers: store.save_answers("load", answers))
    answers_kept = time.process_time()
    attempt(lambda: store.close_attempt("load", f"fan-out-{writer}", 1, state="done"))
    return errors, adapters_kept - began, answers_kept - adapters_kept


def log_points(uri: str, writer: int, n_points: int, folder: Path) -> list[str]:
    """Log a curve of so many points in a run of its own, and upload an adapter; return what went wrong."""
    from clusterlora.stores.mlflow_tracker import MlflowTracker

    try:
        with MlflowTracker(uri).adapter_run(
            "load", name=f"writer {writer}", params={}, tags={"training_group": f"p{writer}", "attempt": "1"}
        ) as run:
            run.curve("train/loss", [(step, 1 / step) for step in range(1, n_points + 1)])
            run.artifacts(folder, "adapters/x")
    except Exception as error:  # noqa: BLE001  (as above)
        return [f"{type(error).__name__}: {error}"]
    return []


def measure_database(url: str, *, writers: int, n_personas: int, n_dialogues: int, n_items: int, methods: Sequence[str]) -> dict[str, Any]:
    """Return seconds of every step, the rows behind them, and every error that a writer saw."""
    # Other people for every database: a process keeps the data it read last.
    dataset = people(n_personas, n_dialogues, fond_of=url.partition(":")[0])
    store = SqlStudyStore(url)
    store.create_study(prepared(Study(name="load"), "float32"))
    found: dict[str, Any] = {"writers": writers, "personas": n_personas, "dialogues": n_personas * n_dialogues}
    found["rows_per_method"], found["methods"] = n_personas * n_items, len(methods)
    found["save_dataset"] = _timed(lambda: store.save_dataset("load", dataset))
    del dataset
    errors: list[str] = []

    def write() -> None:
        with ProcessPoolExecutor(writers, mp_context=multiprocessing.get_context("fork")) as pool:
            runs = [pool.submit(write_results, url, w, writers, n_personas, n_items, methods) for w in range(writers)]
            done = [run.result() for run in runs]
        errors.extend(error for told, _, _ in done for error in told)
        found["adapters_cpu_seconds"] = round(sum(seconds for _, seconds, _ in done), 2)
        found["answers_cpu_seconds"] = round(sum(seconds for _, _, seconds in done), 2)

    found["write"] = _timed(write)
    found["read_dataset"] = _timed(lambda: store.dataset("load"))
    found["read_answers"] = _timed(lambda: store.answers("load", [f"{methods[0]}-{p}" for p in range(min(n_personas, 500))]))
    found["read_answers_rows"] = min(n_personas, 500) * n_items
    found["answers"] = sum(len(store.answers("load", [f"{method}-{p}" for p in range(n_personas)])) for method in methods)
    found["adapters"] = len(store.adapters("load"))
    found["errors"] = errors
    return found


def measure_mlflow(uri: str, *, writers: int, n_points: int) -> dict[str, Any]:
    """Return seconds of many runs that log curves side by side."""
    from mlflow import MlflowClient

    from clusterlora.stores.mlflow_tracker import MlflowTracker

    MlflowTracker(uri).start_study("load", params={}, tags={}, dataset=people(2, 5))
    errors: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "adapter_model.safetensors").write_bytes(os.urandom(100_000))
        (Path(folder) / "adapter_config.json").write_text("{}")

        def write() -> None:
            with ProcessPoolExecutor(writers, mp_context=multiprocessing.get_context("fork")) as pool:
                runs = [pool.submit(log_points, uri, w, n_points, Path(folder)) for w in range(writers)]
                errors.extend(error for run in runs for error in run.result())

        spent = _timed(write)
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("load")
    assert experiment is not None
    logged = client.search_runs([experiment.experiment_id], "tags.`clusterlora.run` = 'training'")
    points = [len(client.get_metric_history(run.info.run_id, "train/loss")) for run in logged]
    return {"runs": len(logged), "points_per_run": n_points, "points_found": sum(points), **spent, "errors": errors}


def _timed(what: Callable[[], object]) -> dict[str, float]:
    """Return the seconds it took, and those of processors that this process and its writers used: a busy machine stretches the former."""
    began, used = time.perf_counter(), _processor_seconds()
    what()
    return {"seconds": round(time.perf_counter() - began, 2), "cpu_seconds": round(_processor_seconds() - used, 2)}


def _processor_seconds() -> float:
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(s.ru_utime + s.ru_stime for s in spent)


def bytes_per_persona(n_dialogues: int) -> float:
    """Return the memory that a persona with so many dialogues takes in a data set."""
    tracemalloc.start()
    held = people(100, n_dialogues)
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return taken / len(held.personas)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--writers", type=int, default=8)
    parser.add_argument("--personas", type=int, default=2000)
    parser.add_argument("--dialogues", type=int, default=50)
    parser.add_argument("--items", type=int, default=10, help="test items per persona")
    parser.add_argument("--methods", type=int, default=2)
    parser.add_argument("--points", type=int, default=10_000)
    parser.add_argument("--out", type=Path, help="Folder for scale.json and scale.md.")
    asked = parser.parse_args()
    methods = [f"method{n}" for n in range(asked.methods)]
    size: dict[str, Any] = {
        "writers": asked.writers,
        "n_personas": asked.personas,
        "n_dialogues": asked.dialogues,
        "n_items": asked.items,
        "methods": methods,
    }
    found: dict[str, Any] = {"load_before": round(os.getloadavg()[0], 2), "cores": os.cpu_count()}
    found["bytes_per_persona"] = bytes_per_persona(DIALOGUES)
    with place() as there, tempfile.TemporaryDirectory() as folder:
        found["mlflow"] = measure_mlflow(there.environment["MLFLOW_TRACKING_URI"], writers=asked.writers, n_points=asked.points)
        print(json.dumps(found["mlflow"]), flush=True)
        for name, url in (("postgresql", there.environment["CLUSTERLORA_DATABASE_URL"]), ("sqlite", f"sqlite:///{folder}/load.db")):
            found[name] = measure_database(url, **size)
            print(name, json.dumps(found[name]), flush=True)
    if asked.out:
        (asked.out / "scale.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        (asked.out / "scale.md").write_text(page(found), encoding="utf-8")
    return 1 if any(_errors(found)) else 0


def _errors(found: Mapping[str, Any]) -> list[str]:
    return [error for part in ("mlflow", "postgresql", "sqlite") for error in found[part]["errors"]]


if __name__ == "__main__":
    raise SystemExit(main())
