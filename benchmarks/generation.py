"""Generation: answers per second when every item has an adapter of its own, against PEFT one by one and PEFT's mixed batch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from peft import PeftModel
from transformers import GenerationConfig

from benchmarks.measure import Contender, Sample, Speedup, clock, speedup, take_turns
from benchmarks.subjects import Subject, questions, write_adapters
from clusterlora.engine.base import BaseModel
from clusterlora.engine.generation import Question
from clusterlora.engine.inference_backends import InferenceBackend, inference_backend
from clusterlora.engine.kinds import read_weights

OURS = "ours"
ONE_BY_ONE = "PEFT one by one"
MIXED = "PEFT mixed batch (adapter_names)"

AnswerIds = list[tuple[int, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationPlan:
    """What is generated, and in what batches."""

    adapters: int
    items_per_adapter: int = 1
    """PEFT one by one answers adapter by adapter: the items of an adapter are one batch."""
    described: bool = False
    """Whether prompts describe the persona, which makes the prefix that they share longer."""
    max_new_tokens: int = 32
    batch_size: int = 32
    peers: tuple[str, ...] = (ONE_BY_ONE, MIXED)

    @property
    def variant(self) -> str:
        """Return the part of a row's name that follows model and dtype."""
        return (f" x{self.items_per_adapter}" if self.items_per_adapter > 1 else "") + (" described" if self.described else "")


def compare_generation(
    subject: Subject, plan: GenerationPlan, *, peak_flops_per_second: float, budget_seconds: float, at_least: int, scratch: Path
) -> list[Speedup]:
    """Return a speedup per peer; both sides load adapters before the clock starts."""
    all_questions = questions(subject.ours, plan.adapters, per_adapter=plan.items_per_adapter, described=plan.described)
    folders = write_adapters(subject.ours, plan.adapters, scratch)
    backend = inference_backend(subject.ours, [read_weights(folder) for folder in folders])
    peft = mounted(subject.theirs, folders)
    answers: dict[str, AnswerIds] = {}
    run_by_name: dict[str, Callable[[Sequence[Question], int], AnswerIds]] = {
        OURS: partial(ours, backend, batch_size=plan.batch_size),
        ONE_BY_ONE: partial(one_by_one, peft, subject.theirs),
        MIXED: partial(_mixed, peft, subject.theirs, batch_size=plan.batch_size),
    }

    def run(name: str) -> Sample:
        start = clock(subject.device)
        answers[name] = run_by_name[name](all_questions, plan.max_new_tokens)
        seconds = clock(subject.device) - start
        flops = fmean(subject.shape.generating(len(q.prompt), len(ids)) for q, ids in zip(all_questions, answers[name], strict=True))
        return Sample(seconds / len(all_questions), flops, {})

    contenders = [Contender(name, partial(run_by_name[name], all_questions, 2), partial(run, name)) for name in (OURS, *plan.peers)]
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
        "mean_prompt_tokens": fmean(len(q.prompt) for q in all_questions),
        "mean_answer_tokens": fmean(map(len, answers[OURS])),
    }
    speedups = [
        speedup(
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
    return [
        replace(row, facts={**row.facts, "identical_answers": _share_identical(answers[OURS], answers[row.baseline])}) for row in speedups
    ]


def ours(backend: InferenceBackend, items: Sequence[Question], max_new_tokens: int, *, batch_size: int) -> AnswerIds:
    """Return the answers of our engine, in order."""
    # Without references, since the peers compute no likelihoods.
    without_references = [replace(question, reference=()) for question in items]
    replies = backend.reply(without_references, max_new_tokens=max_new_tokens, batch_size=batch_size)
    return [reply.ids for reply in sorted(replies, key=lambda reply: reply.number)]


def mounted(base: BaseModel, folders: Sequence[Path]) -> PeftModel:
    """Return PEFT's model with one adapter per slot, named after it."""
    model = PeftModel.from_pretrained(base.model, str(folders[0]), adapter_name="slot1")
    for slot, folder in enumerate(folders[1:], start=2):
        model.load_adapter(str(folder), f"slot{slot}")
    return model.eval()


def one_by_one(model: PeftModel, base: BaseModel, items: Sequence[Question], max_new_tokens: int) -> AnswerIds:
    """Return PEFT's answers, in order: adapter by adapter, the items of one in a batch."""
    answers: AnswerIds = [()] * len(items)
    for slot in sorted({q.slot for q in items}):
        indices = [i for i, q in enumerate(items) if q.slot == slot]
        model.set_adapter(f"slot{slot}")
        for index, ids in zip(indices, _generate(model, base, [items[i] for i in indices], max_new_tokens), strict=True):
            answers[index] = ids
    return answers


def _mixed(model: PeftModel, base: BaseModel, items: Sequence[Question], max_new_tokens: int, *, batch_size: int) -> AnswerIds:
    # Longest first, as in our backend, for little padding.
    order = sorted(range(len(items)), key=lambda i: -len(items[i].prompt))
    answers: AnswerIds = [()] * len(items)
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        batch = [items[i] for i in indices]
        batch_answers = _generate(model, base, batch, max_new_tokens, adapter_names=[f"slot{q.slot}" for q in batch])
        for index, ids in zip(indices, batch_answers, strict=True):
            answers[index] = ids
    return answers


@torch.inference_mode()
def _generate(model: PeftModel, base: BaseModel, batch: Sequence[Question], max_new_tokens: int, **extra: Any) -> AnswerIds:
    """Return transformers' greedy answers to left-padded prompts, cut at the first end token."""
    device = base.model.device
    longest = max(len(q.prompt) for q in batch)
    ids = torch.tensor([[base.pad_id] * (longest - len(q.prompt)) + list(q.prompt) for q in batch], device=device)
    mask = torch.tensor([[0] * (longest - len(q.prompt)) + [1] * len(q.prompt) for q in batch], device=device)
    config = GenerationConfig(do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=sorted(base.end_ids), pad_token_id=base.pad_id)
    generated = model.generate(input_ids=ids, attention_mask=mask, generation_config=config, **extra)
    return [_until_end(row[longest:].tolist(), base.end_ids) for row in generated]


def _until_end(ids: Sequence[int], end_ids: frozenset[int]) -> tuple[int, ...]:
    first_end = next((i for i, token in enumerate(ids) if token in end_ids), len(ids))
    return tuple(ids[:first_end])


def _share_identical(ours: AnswerIds, theirs: AnswerIds) -> float:
    return fmean(a == b for a, b in zip(ours, theirs, strict=True))
