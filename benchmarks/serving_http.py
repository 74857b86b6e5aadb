"""Serving over HTTP: requests of many at once to `clusterlora serve`, to `mlflow models serve`, and to plain PEFT behind a lock."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import httpx
import torch

from benchmarks.subjects import load_subject, write_adapters
from clusterlora.adapters.held import HeldAdapters
from clusterlora.serving.export import export
from clusterlora.stores.mlflow_registry import write_model
from clusterlora.stores.routing_table import RoutingTable

SERVE = "import sys; from clusterlora.cli import main; sys.exit(main())"
START_SECONDS = 240.0

Ask = Callable[[int], str]
"""Answers the request of this number; returns the text."""


def measure(
    table: Callable[[Sequence[str]], RoutingTable],
    mounted: Callable[[Sequence[Path]], tuple[Any, Any]],
    *,
    model: str,
    adapters: int,
    requests: int,
    clients: int,
    max_new_tokens: int,
    repetitions: int,
    questions: Sequence[Sequence[dict[str, str]]],
) -> dict[str, Any]:
    """Return latency percentiles and tokens per second of each contender, and how many times PEFT's tokens per second they are.

    The contenders take turns. Their answers are the same, so the tokens are counted once.
    """
    persona_ids = [f"person{n % adapters}" for n in range(requests)]
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        folder = Path(scratch)
        subject = load_subject(model, dtype="float32", device="cpu")
        folders = {f"key{n}": one for n, one in enumerate(write_adapters(subject.ours, adapters, folder))}
        write_model(folder / "model", table(list(folders)), HeldAdapters(folders))
        export(folder / "model" / "artifacts", folder / "exported", "peft")
        peft, tokenizer = mounted(list(folders.values()))
        n_tokens, lock = [0] * requests, threading.Lock()

        def ask_peft(number: int) -> str:
            prompt = tokenizer.apply_chat_template(
                questions[number % len(questions)], add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
            with lock, torch.inference_mode():
                peft.set_adapter(persona_ids[number])
                ids = peft.generate(**prompt, max_new_tokens=max_new_tokens, do_sample=False)[0, prompt["input_ids"].shape[1] :]
            n_tokens[number] = len(ids)
            return str(tokenizer.decode(ids, skip_special_tokens=True)).strip()

        ours = stack.enter_context(_ours(folder / "exported", persona_ids, questions, clients))
        mlflow = stack.enter_context(_mlflow(folder / "model", persona_ids, questions))
        contenders: dict[str, Ask] = {"clusterlora serve": ours, "mlflow models serve": mlflow, "PEFT, one by one": ask_peft}
        latencies: dict[str, list[float]] = {name: [] for name in contenders}
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        texts: dict[str, list[str]] = {}
        for repetition in range(repetitions + 1):
            for name, ask in contenders.items():
                texts[name], of_each, total = _asked(ask, requests, clients)
                if repetition:  # the first repetition is the warm-up
                    latencies[name] += of_each
                    seconds[name].append(total)
    speed = {name: sum(n_tokens) / median(seconds[name]) for name in contenders}
    return {
        "model": model,
        "adapters": adapters,
        "requests": requests,
        "clients": clients,
        "tokens": sum(n_tokens),
        **{
            name: {
                **{f"p{p}_seconds": quantiles(latencies[name], n=100)[p - 1] for p in (50, 95, 99)},
                "tokens_per_second": speed[name],
                "times_peft": speed[name] / speed["PEFT, one by one"],
                "same_answers_as_peft": sum(a == b for a, b in zip(texts[name], texts["PEFT, one by one"], strict=True)),
            }
            for name in contenders
        },
    }


def _asked(ask: Ask, requests: int, clients: int) -> tuple[list[str], list[float], float]:
    """Return the answers, the seconds of each, and those of all."""

    def timed(number: int) -> tuple[str, float]:
        started = time.perf_counter()
        text = ask(number)
        return text, time.perf_counter() - started

    started = time.perf_counter()
    with ThreadPoolExecutor(clients) as people:
        answered = list(people.map(timed, range(requests)))
    return [text for text, _ in answered], [seconds for _, seconds in answered], time.perf_counter() - started


@contextmanager
def _ours(folder: Path, persona_ids: Sequence[str], questions: Sequence[Sequence[dict[str, str]]], slots: int) -> Iterator[Ask]:
    port = _free_port()
    command = [sys.executable, "-P", "-c", SERVE, "serve", str(folder), "--no-key", "--port", str(port), "--slots", str(slots)]
    with _started(command, f"http://127.0.0.1:{port}/ready"), httpx.Client(base_url=f"http://127.0.0.1:{port}/v1", timeout=600) as client:

        def ask(number: int) -> str:
            body = {"model": "bench", "user": persona_ids[number], "messages": questions[number % len(questions)]}
            return client.post("/chat/completions", json=body).raise_for_status().json()["choices"][0]["message"]["content"]

        yield ask


@contextmanager
def _mlflow(folder: Path, persona_ids: Sequence[str], questions: Sequence[Sequence[dict[str, str]]]) -> Iterator[Ask]:
    port = _free_port()
    command = [sys.executable, "-P", "-m", "mlflow", "models", "serve", "-m", str(folder), "--env-manager", "local", "--port", str(port)]
    with _started(command, f"http://127.0.0.1:{port}/ping"), httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=600) as client:

        def ask(number: int) -> str:
            row = {"persona_id": persona_ids[number], "messages": questions[number % len(questions)]}
            return client.post("/invocations", json={"dataframe_records": [row]}).raise_for_status().json()["predictions"][0]["text"]

        yield ask


@contextmanager
def _started(command: Sequence[str], ready: str) -> Iterator[None]:
    """Run a server in a process group of its own, once it is ready."""
    with tempfile.TemporaryFile() as log:
        # MLflow starts `uvicorn` by its name.
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "PATH": path}
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        try:
            deadline = time.monotonic() + START_SECONDS
            while not _answers(ready):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise RuntimeError(f"{' '.join(command)} did not start: {log.read().decode()[-2000:]}")
                time.sleep(0.2)
            yield
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
            process.wait()


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).is_success
    except httpx.HTTPError:
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def as_table(result: dict[str, Any]) -> str:
    """Return the result as a table in Markdown."""
    lines = ["| | p50 | p95 | p99 | tokens/s | times PEFT |", "|---|---:|---:|---:|---:|---:|"]
    for name, row in result.items():
        if isinstance(row, dict):
            percentiles = " | ".join(f"{row[f'p{p}_seconds'] * 1000:.0f} ms" for p in (50, 95, 99))
            lines.append(f"| {name} | {percentiles} | {row['tokens_per_second']:.0f} | {row['times_peft']:.2f} |")
    return "\n".join(lines)
