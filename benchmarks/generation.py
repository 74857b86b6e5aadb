"""Generation: answers per second with an adapter of its own for every item, against PEFT one by one and PEFT's mixed batch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from peft import PeftModel
from transformers import GenerationConfig

from benchmarks.measure import Contender, Row, Sample, clock, compare, take_turns
from benchmarks.subjects import Subject, questions, write_adapters
from clusterlora.evaluation.generate import Question
from clusterlora.evaluation.inference_backends import InferenceBackend, inference_backend
from clusterlora.models.base import BaseModel
from clusterlora.models.stacked import read_weights

OURS = "ours"
ONE_BY_ONE = "PEFT one by one"
MIXED = "PEFT mixed batch (adapter_names)"

AnswerIds = list[tuple[int, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationPlan:
    """How much is answered."""

    adapters: int
    items_per_adapter: int = 1
    """One by one means adapter by adapter: the items of one adapter are one batch."""
    described: bool = False
    """Whether prompts say who the persona is: they begin alike for longer."""
    max_new_tokens: int = 32
    batch_size: int = 32
    peers: tuple[str, ...] = (ONE_BY_ONE, MIXED)

    @property
    def variant(self) -> str:
        """Return what a row's name says of the plan beside model and dtype."""
        return (f" x{self.items_per_adapter}" if self.items_per_adapter > 1 else "") + (" described" if self.described else "")


def compare_generation(
    subject: Subject, plan: GenerationPlan, *, peak_flops_per_second: float, budget_seconds: float, at_least: int, scratch: Path
) -> list[Row]:
    """Return a row per peer; adapters are loaded beforehand on both sides."""
    asked = questions(subject.ours, plan.adapters, per_adapter=plan.items_per_adapter, described=plan.described)
    folders = write_adapters(subject.ours, plan.adapters, scratch)
    backend = inference_backend(subject.ours, [read_weights(folder) for folder in folders])
    peft = _mounted(subject.theirs, folders)
    answers: dict[str, AnswerIds] = {}
    run_by_name: dict[str, Callable[[Sequence[Question], int], AnswerIds]] = {
        OURS: partial(_ours, backend, batch_size=plan.batch_size),
        ONE_BY_ONE: partial(_one_by_one, peft, subject.theirs),
        MIXED: partial(_mixed, peft, subject.theirs, batch_size=plan.batch_size),
    }

    def run(name: str) -> Sample:
        start = clock(subject.device)
        answers[name] = run_by_name[name](asked, plan.max_new_tokens)
        seconds = clock(subject.device) - start
        flops = fmean(subject.shape.generating(len(q.prompt), len(ids)) for q, ids in zip(asked, answers[name], strict=True))
        return Sample(seconds / len(asked), flops, {})

    contenders = [Contender(name, partial(run_by_name[name], asked, 2), partial(run, name)) for name in (OURS, *plan.peers)]
    try:
        samples = take_turns(contenders, budget_seconds=budget_seconds, at_least=at_least, at_most=7)
    finally:
        backend.close()
        peft.unload()
    settings = {
        "model": subject.name,
        "dtype": subject.dtype,
        "device": str(subject.device),
        "adapters": plan.adapters,
        "items_per_adapter": plan.items_per_adapter,
        "described": plan.described,
        "max_new_tokens": plan.max_new_tokens,
        "batch_size": plan.batch_size,
        "mean_prompt_tokens": fmean(len(q.prompt) for q in asked),
        "mean_answer_tokens": fmean(map(len, answers[OURS])),
    }
    rows = [
        compare(
            f"generation {subject.name} {subject.dtype}{plan.variant}",
            name,
            samples[OURS],
            samples[name],
            unit="answers/s",
            units_per_second=1,
            peak_flops_per_second=peak_flops_per_second,
            settings=settings,
        )
        for name in plan.peers
    ]
    return [replace(row, facts={**row.facts, "identical_answers": _share_identical(answers[OURS], answers[row.baseline])}) for row in rows]


def _ours(backend: InferenceBackend, asked: Sequence[Question], max_new_tokens: int, *, batch_size: int) -> AnswerIds:
    # Without references: the peers are not asked for likelihoods.
    bare = [replace(question, reference=()) for question in asked]
    replies = backend.reply(bare, max_new_tokens=max_new_tokens, batch_size=batch_size)
    return [reply.ids for reply in sorted(replies, key=lambda reply: reply.number)]


def _mounted(base: BaseModel, folders: Sequence[Path]) -> PeftModel:
    """Return PEFT's model with one adapter per slot, named after it."""
    model = PeftModel.from_pretrained(base.model, str(folders[0]), adapter_name="slot1")
    for slot, folder in enumerate(folders[1:], start=2):
        model.load_adapter(str(folder), f"slot{slot}")
    return model.eval()


def _one_by_one(model: PeftModel, base: BaseModel, asked: Sequence[Question], max_new_tokens: int) -> AnswerIds:
    answers: AnswerIds = [()] * len(asked)
    for slot in sorted({q.slot for q in asked}):
        places = [i for i, q in enumerate(asked) if q.slot == slot]
        model.set_adapter(f"slot{slot}")
        for place, ids in zip(places, _generate(model, base, [asked[i] for i in places], max_new_tokens), strict=True):
            answers[place] = ids
    return answers


def _mixed(model: PeftModel, base: BaseModel, asked: Sequence[Question], max_new_tokens: int, *, batch_size: int) -> AnswerIds:
    # Longest first, as we do: batches without much padding.
    order = sorted(range(len(asked)), key=lambda i: -len(asked[i].prompt))
    answers: AnswerIds = [()] * len(asked)
    for start in range(0, len(order), batch_size):
        places = order[start : start + batch_size]
        batch = [asked[i] for i in places]
        found = _generate(model, base, batch, max_new_tokens, adapter_names=[f"slot{q.slot}" for q in batch])
        for place, ids in zip(places, found, strict=True):
            answers[place] = ids
    return answers


@torch.inference_mode()
def _generate(model: PeftModel, base: BaseModel, batch: Sequence[Question], max_new_tokens: int, **extra: Any) -> AnswerIds:
    """Return transformers' greedy answers to left-padded prompts, cut at the first end token."""
    device = base.model.device
    longest = max(len(q.prompt) for q in batch)
    ids = torch.tensor([[base.pad_id] * (longest - len(q.prompt)) + list(q.prompt) for q in batch], device=device)
    mask = torch.tensor([[0] * (longest - len(q.prompt)) + [1] * len(q.prompt) for q in batch], device=device)
    config = GenerationConfig(do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=sorted(base.end_ids), pad_token_id=base.pad_id)
    found = model.generate(input_ids=ids, attention_mask=mask, generation_config=config, **extra)
    return [_until_end(row[longest:].tolist(), base.end_ids) for row in found]


def _until_end(ids: Sequence[int], end_ids: frozenset[int]) -> tuple[int, ...]:
    end = next((i for i, token in enumerate(ids) if token in end_ids), len(ids))
    return tuple(ids[:end])


def _share_identical(ours: AnswerIds, theirs: AnswerIds) -> float:
    return fmean(a == b for a, b in zip(ours, theirs, strict=True))
