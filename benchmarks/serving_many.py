"""A router for more people than it holds in memory: requests of a few whom everybody asks for and of many who seldom come."""

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save

from benchmarks.subjects import load_subject, write_adapters
from clusterlora.adapters.held import HeldAdapters
from clusterlora.adapters.shards import MOST_ADAPTERS, write_shard
from clusterlora.adapters.weights import adapter_files
from clusterlora.ports.adapter_store import AdapterFiles
from clusterlora.serving.router import Router
from clusterlora.settings import PreparedModel
from clusterlora.stores.routing_table import KeyedComposition, RoutingTable


def measure(
    table: Callable[[list[str]], RoutingTable],
    *,
    model: str,
    people: int,
    resident: int,
    requests: int,
    max_new_tokens: int,
    question: str,
) -> dict[str, Any]:
    """Return how long requests take that come one after another, against a router that has everybody who asks in memory.

    Who asks follows Zipf's law with exponent 1. The same request is answered by both routers in turns.
    """
    subject = load_subject(model, dtype="float32", device="cpu")
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as scratch:
        keys = [f"key{n:05d}" for n in range(people)]
        shards = _shards(keys, write_adapters(subject.ours, 1, Path(scratch) / "one")[0], Path(scratch))
        everybody = table(keys)
        person_by_rank = rng.permutation(list(everybody.personas))
        weights = 1 / np.arange(1, people + 1)
        asked = [str(person_by_rank[rank]) for rank in rng.choice(people, size=requests, p=weights / weights.sum())]
        started = time.perf_counter()
        paged = Router(everybody, HeldAdapters(shards=shards), base=subject.ours, n_resident=resident)
        seconds_to_load = time.perf_counter() - started
        key_of = {person: composition.adapters[0].key for person, composition in everybody.personas.items()}
        of_asked = {key_of[person]: shards[key_of[person]] for person in asked}
        personas = {person: everybody.personas[person] for person in dict.fromkeys(asked)}
        whole = Router(_with_personas(everybody, personas), HeldAdapters(shards=of_asked), base=subject.ours, n_resident=len(personas))
        routers = {"paged": paged, "resident": whole}
        seconds = {name: np.zeros(requests) for name in routers}
        for router in routers.values():
            router.answer([_request(asked[0], question)])
        for number, person in enumerate(asked):
            # Who goes first changes: the second finds the processor's caches warm.
            for name in sorted(routers, reverse=bool(number % 2)):
                started = time.perf_counter()
                routers[name].answer([_request(person, question)])
                seconds[name][number] = time.perf_counter() - started
    ratio = seconds["paged"] / seconds["resident"]
    return {
        "model": model,
        "people": people,
        "resident": resident,
        "requests": requests,
        "distinct_people_who_ask": len(personas),
        "max_new_tokens": max_new_tokens,
        "files": len(set(shards.values())),
        "seconds_to_load": seconds_to_load,
        "resident_latency_seconds": float(np.median(seconds["resident"])),
        "ratio_median": float(np.median(ratio)),
        "ratio_p95": float(np.quantile(ratio, 0.95)),
        "share_within_twice": float((ratio <= 2).mean()),
    }


def _request(person: str, question: str) -> dict[str, Any]:
    messages = [{"role": "system", "content": PreparedModel().system_prompt}, {"role": "user", "content": question}]
    return {"persona_id": person, "messages": messages}


def _with_personas(table: RoutingTable, personas: Mapping[str, KeyedComposition]) -> RoutingTable:
    return replace(table, personas=personas)


def _shards(keys: list[str], folder: Path, target: Path) -> dict[str, Path]:
    """Write an adapter of its own for each key, all of the form of one in a PEFT folder, in shards; return each key's file."""
    form = adapter_files(folder)
    assert form is not None, f"{folder} holds more than an adapter"
    tensors, draw = load(form.weights), torch.Generator().manual_seed(0)
    shards: dict[str, Path] = {}
    for start in range(0, len(keys), MOST_ADAPTERS):
        group = keys[start : start + MOST_ADAPTERS]
        file = target / f"{start:05d}.safetensors"
        of_group = {
            key: AdapterFiles(
                form.config,
                save(
                    {name: tensor + 0.01 * torch.randn(tensor.shape, generator=draw) for name, tensor in tensors.items()},
                    metadata={"format": "pt"},
                ),
            )
            for key in group
        }
        write_shard(file, of_group)
        shards |= dict.fromkeys(group, file)
    return shards
