"""Load test of the study database and the MLflow server with eight writers: `python -m benchmarks.load --out docs`.

Writes scale.json and scale.md. The databases are a real PostgreSQL and SQLite, the MLflow server is real, every writer is a process.
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
from clusterlora.recipe import Recipe
from clusterlora.settings import Study, prepared
from clusterlora.stores.sql import SqlStudyStore
from clusterlora.values import AdapterSpec, Answer, Attempt, Dataset, Dialogue, Persona, TrainedAdapter, Turn
from tests.all.chaos.place import place

SPLITS = ("train", "train", "train", "val", "test")
METRICS = ("embedding_similarity", "rouge_l", "nll")
TEXT = "Of course. The lights in the living room are at thirty percent now, and the heating will be at twenty degrees by seven. "
"""The assistant's answer: 120 characters, the length of an answer in the mission."""


def people(n_personas: int, n_dialogues: int, *, interest: str = "plants") -> Dataset:
    """Return a data set in the mission's proportions: three fifths train, a fifth val, a fifth test."""
    return Dataset(
        tuple(
            Persona(
                f"persona_{p:07d}",
                f"Calm, exact, fond of {interest}.",
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
    """Save this writer's share of adapters, one by one as training does, and of answers.

    Returns error messages and the CPU seconds spent on adapters and on answers.
    """
    errors: list[str] = []
    store = SqlStudyStore(url)
    persona_numbers = range(writer, n_personas, writers)

    def attempt(write: Callable[[], object]) -> None:
        try:
            write()
        except Exception as error:  # noqa: BLE001  (every error that would reach the user counts)
            errors.append(f"{type(error).__name__}: {error}")

    attempt(lambda: store.open_attempt("load", Attempt(f"fan-out-{writer}", 1, 2, "running")))
    started = time.process_time()
    for p in persona_numbers:
        spec = AdapterSpec(name=f"persona-{p}", persona_ids=(f"persona_{p:07d}",), recipe=Recipe())
        adapter = TrainedAdapter(f"{p:016x}", spec.name, spec, 45, 9000, 1.0, 3.0, 1.0, 100_000, "run", "runs:/run/x", "0" * 64)
        attempt(lambda adapter=adapter: store.save_adapter("load", adapter))
    adapters_saved = time.process_time()
    for method in methods:
        answers = [
            Answer(f"{method}-{p}", f"d{i}", f"persona_{p:07d}", "test", TEXT, tuple((metric, 0.5) for metric in METRICS))
            for p in persona_numbers
            for i in range(n_items)
        ]
        attempt(lambda answers=answers: store.save_answers("load", answers))
    answers_saved = time.process_time()
    attempt(lambda: store.close_attempt("load", f"fan-out-{writer}", 1, state="done"))
    return errors, adapters_saved - started, answers_saved - adapters_saved


def log_points(uri: str, writer: int, n_points: int, folder: Path) -> list[str]:
    """Log a curve of `n_points` in a run of its own and upload an adapter; return error messages."""
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
    """Return the seconds of every step, its number of rows, and all errors of the writers."""
    # Different personas for every database, because a process caches the data set that it read last.
    dataset = people(n_personas, n_dialogues, interest=url.partition(":")[0])
    store = SqlStudyStore(url)
    store.create_study(prepared(Study(name="load"), "float32"))
    measured: dict[str, Any] = {"writers": writers, "personas": n_personas, "dialogues": n_personas * n_dialogues}
    measured["rows_per_method"], measured["methods"] = n_personas * n_items, len(methods)
    measured["save_dataset"] = _timed(lambda: store.save_dataset("load", dataset))
    del dataset
    errors: list[str] = []

    def write() -> None:
        with ProcessPoolExecutor(writers, mp_context=multiprocessing.get_context("fork")) as pool:
            runs = [pool.submit(write_results, url, w, writers, n_personas, n_items, methods) for w in range(writers)]
            results = [run.result() for run in runs]
        errors.extend(error for writer_errors, _, _ in results for error in writer_errors)
        measured["adapters_cpu_seconds"] = round(sum(seconds for _, seconds, _ in results), 2)
        measured["answers_cpu_seconds"] = round(sum(seconds for _, _, seconds in results), 2)

    measured["write"] = _timed(write)
    measured["read_dataset"] = _timed(lambda: store.dataset("load"))
    measured["read_answers"] = _timed(lambda: store.answers("load", [f"{methods[0]}-{p}" for p in range(min(n_personas, 500))]))
    measured["read_answers_rows"] = min(n_personas, 500) * n_items
    measured["answers"] = sum(len(store.answers("load", [f"{method}-{p}" for p in range(n_personas)])) for method in methods)
    measured["adapters"] = len(store.adapters("load"))
    measured["errors"] = errors
    return measured


def measure_mlflow(uri: str, *, writers: int, n_points: int) -> dict[str, Any]:
    """Return the seconds of concurrent runs that log curves."""
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

        timing = _timed(write)
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("load")
    assert experiment is not None
    logged = client.search_runs([experiment.experiment_id], "tags.`clusterlora.run` = 'training'")
    points = [len(client.get_metric_history(run.info.run_id, "train/loss")) for run in logged]
    return {"runs": len(logged), "points_per_run": n_points, "points_found": sum(points), **timing, "errors": errors}


def _timed(action: Callable[[], object]) -> dict[str, float]:
    """Return wall seconds, which grow on a busy machine, and CPU seconds of this process and its writers."""
    started, cpu_before = time.perf_counter(), _cpu_seconds()
    action()
    return {"seconds": round(time.perf_counter() - started, 2), "cpu_seconds": round(_cpu_seconds() - cpu_before, 2)}


def _cpu_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(s.ru_utime + s.ru_stime for s in usages)


def bytes_per_persona(n_dialogues: int) -> float:
    """Return the memory of a persona with `n_dialogues` dialogues in a data set."""
    tracemalloc.start()
    dataset = people(100, n_dialogues)
    allocated, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return allocated / len(dataset.personas)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--writers", type=int, default=8)
    parser.add_argument("--personas", type=int, default=2000)
    parser.add_argument("--dialogues", type=int, default=50)
    parser.add_argument("--items", type=int, default=10, help="test items per persona")
    parser.add_argument("--methods", type=int, default=2)
    parser.add_argument("--points", type=int, default=10_000)
    parser.add_argument("--out", type=Path, help="Folder for scale.json and scale.md.")
    options = parser.parse_args()
    methods = [f"method{n}" for n in range(options.methods)]
    size: dict[str, Any] = {
        "writers": options.writers,
        "n_personas": options.personas,
        "n_dialogues": options.dialogues,
        "n_items": options.items,
        "methods": methods,
    }
    measurements: dict[str, Any] = {"load_before": round(os.getloadavg()[0], 2), "cores": os.cpu_count()}
    measurements["bytes_per_persona"] = bytes_per_persona(DIALOGUES)
    with place() as there, tempfile.TemporaryDirectory() as folder:
        measurements["mlflow"] = measure_mlflow(there.environment["MLFLOW_TRACKING_URI"], writers=options.writers, n_points=options.points)
        print(json.dumps(measurements["mlflow"]), flush=True)
        for name, url in (("postgresql", there.environment["CLUSTERLORA_DATABASE_URL"]), ("sqlite", f"sqlite:///{folder}/load.db")):
            measurements[name] = measure_database(url, **size)
            print(name, json.dumps(measurements[name]), flush=True)
    if options.out:
        if (before := options.out / "scale.json").is_file():
            measurements["studies"] = json.loads(before.read_text(encoding="utf-8")).get("studies", [])
        (options.out / "scale.json").write_text(json.dumps(measurements, indent=1) + "\n", encoding="utf-8")
        (options.out / "scale.md").write_text(page(measurements), encoding="utf-8")
    return 1 if any(_errors(measurements)) else 0


def _errors(measurements: Mapping[str, Any]) -> list[str]:
    return [error for part in ("mlflow", "postgresql", "sqlite") for error in measurements[part]["errors"]]


if __name__ == "__main__":
    raise SystemExit(main())
