"""Serving requests of different personas: the router against plain PEFT in one process, with --http servers at work for many clients, with
--people a router for more people than it holds in memory.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from peft import PeftModel

from benchmarks import serving_http, serving_many
from benchmarks.subjects import load_subject, write_adapters
from clusterlora.adapters.held import HeldAdapters
from clusterlora.models.base import base_revision, load_base
from clusterlora.serving import MOST_RESIDENT
from clusterlora.serving.router import Router
from clusterlora.settings import PreparedModel
from clusterlora.stores.routing_table import KeyedAdapter, KeyedComposition, RoutingTable

QUESTION = "Good evening, I am home and would like it warm and quiet in here."
MORE = ("", "Lights, please.", "What is the temperature outside, and will it rain tonight?", "Play something slow in the kitchen.")
"""What some people add, so that prompts differ in length."""


def measure(model: str, *, adapters: int, requests: int, max_new_tokens: int, repetitions: int) -> dict[str, Any]:
    """Return the latency of one request and the throughput of a mixed batch, for the router and for PEFT."""
    subject = load_subject(model, dtype="float32", device="cpu")
    with tempfile.TemporaryDirectory() as scratch:
        folders = {f"key{n}": folder for n, folder in enumerate(write_adapters(subject.ours, adapters, Path(scratch)))}
        router = Router(_table(model, list(folders), max_new_tokens), HeldAdapters(folders))
        peft, tokenizer = _mounted(model, list(folders.values()))
    # A system turn in the request replaces the study's, so that both get the same prompt.
    messages = [{"role": "system", "content": PreparedModel().system_prompt}, {"role": "user", "content": QUESTION}]
    batch = [{"persona_id": f"person{n % adapters}", "messages": messages} for n in range(requests)]

    def answer_with_peft(requests_of_batch: Sequence[dict[str, Any]]) -> None:
        for request in requests_of_batch:
            peft.set_adapter(request["persona_id"])
            prompt = tokenizer.apply_chat_template(request["messages"], add_generation_prompt=True, return_tensors="pt", return_dict=True)
            with torch.inference_mode():
                peft.generate(**prompt, max_new_tokens=max_new_tokens, do_sample=False)

    contenders: dict[str, Callable[[Sequence[dict[str, Any]]], object]] = {"router": router.answer, "PEFT": answer_with_peft}
    seconds: dict[str, dict[int, list[float]]] = {name: {1: [], requests: []} for name in contenders}
    for repetition in range(repetitions + 1):
        for name, answer in contenders.items():
            for size in (1, requests):
                started = time.perf_counter()
                answer(batch[:size])
                if repetition:  # the first repetition is the warm-up
                    seconds[name][size].append(time.perf_counter() - started)
    return {
        "model": model,
        "adapters": adapters,
        "requests": requests,
        "max_new_tokens": max_new_tokens,
        **{
            name: {"latency_seconds": median(by_size[1]), "requests_per_second": requests / median(by_size[requests])}
            for name, by_size in seconds.items()
        },
    }


def _table(model: str, keys: Sequence[str], max_new_tokens: int) -> RoutingTable:
    return RoutingTable(
        study="bench",
        method="per_persona",
        model=PreparedModel(base=model),
        base_revision=base_revision(model),
        max_new_tokens=max_new_tokens,
        default=KeyedComposition(),
        personas={f"person{n}": KeyedComposition((KeyedAdapter(key),)) for n, key in enumerate(keys)},
    )


def _mounted(model: str, folders: Sequence[Path]) -> tuple[Any, Any]:
    base = load_base(model)
    peft: Any = PeftModel.from_pretrained(base.model, str(folders[0]), adapter_name="person0")
    for number, folder in enumerate(folders[1:], start=1):
        peft.load_adapter(str(folder), adapter_name=f"person{number}")
    return peft.eval(), base.tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="homelm")
    parser.add_argument("--adapters", type=int, default=16)
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--http", action="store_true", help="Ask servers: clusterlora serve, mlflow models serve, and plain PEFT.")
    parser.add_argument("--clients", type=int, default=8, help="Requests that are under way at once, with --http.")
    parser.add_argument("--people", type=int, help="So many people, of whom few ask often and most seldom; --resident are in memory.")
    parser.add_argument("--resident", type=int, default=MOST_RESIDENT)
    parser.add_argument("--out", type=Path, help="Folder for serving.json.")
    options = parser.parse_args()
    sizes = {name: getattr(options, name) for name in ("adapters", "requests", "max_new_tokens", "repetitions")}
    if options.people:
        result = serving_many.measure(
            lambda keys: _table(options.model, keys, options.max_new_tokens),
            model=options.model,
            people=options.people,
            resident=options.resident,
            requests=options.requests,
            max_new_tokens=options.max_new_tokens,
            question=QUESTION,
        )
    elif options.http:
        system = {"role": "system", "content": PreparedModel().system_prompt}
        result = serving_http.measure(
            lambda keys: _table(options.model, keys, options.max_new_tokens),
            lambda folders: _mounted(options.model, folders),
            model=options.model,
            clients=options.clients,
            questions=[[system, {"role": "user", "content": f"{QUESTION} {more}".strip()}] for more in MORE],
            **sizes,
        )
    else:
        result = measure(options.model, **sizes)
    text = json.dumps(result, indent=2)
    if options.out:
        (options.out / f"serving{'-people' if options.people else '-http' if options.http else ''}.json").write_text(text + "\n")
    print(text)
    if options.http:
        print(serving_http.as_table(result))


if __name__ == "__main__":
    main()
