"""Greedy answers and reference likelihoods through a transformers model as it is, every row with its own composition of adapters."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache, PreTrainedModel

from clusterlora.models.stacked import StackedModel, logits_only_at

# legend: B row, T token, V vocabulary


@dataclass(frozen=True, slots=True)
class Question:
    """One row: the ids to continue, the slot that answers, and the ids of the reference."""

    prompt: tuple[int, ...]
    slot: int
    reference: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer without its end token, and the mean negative log-likelihood of the reference's tokens, in nats."""

    number: int
    ids: tuple[int, ...]
    nll: float


@torch.inference_mode()
def generate(
    stacked: StackedModel, questions: Sequence[Question], *, end_ids: frozenset[int], pad_id: int, max_new_tokens: int, batch_size: int
) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Yield (index of the question, ids of its greedy answer without the end token), in no particular order.

    Longest prompts go first: batches are even, and memory fails early if it fails at all.
    """
    order = sorted(range(len(questions)), key=lambda i: -len(questions[i].prompt))
    for alike in _by_prefix_length(stacked, order, [q.slot for q in questions]):
        for start in range(0, len(alike), batch_size):
            batch = alike[start : start + batch_size]
            answers = _greedy(stacked, [questions[i] for i in batch], end_ids=end_ids, pad_id=pad_id, max_new_tokens=max_new_tokens)
            yield from zip(batch, answers, strict=True)


def _by_prefix_length(stacked: StackedModel, numbers: Sequence[int], slots: Sequence[int]) -> list[list[int]]:
    """Return the numbers in groups whose slots have prefixes of one length: a batch has one, or none."""
    groups: dict[int, list[int]] = {}
    for number in numbers:
        groups.setdefault(stacked.prefix_length(slots[number]), []).append(number)
    return list(groups.values())


def _greedy(
    stacked: StackedModel, questions: Sequence[Question], *, end_ids: frozenset[int], pad_id: int, max_new_tokens: int
) -> list[tuple[int, ...]]:
    """Return the greedy continuation of each left-padded prompt. Rows leave the batch when they end."""
    model: PreTrainedModel = stacked.model  # pyright: ignore[reportAssignmentType]
    ids_BT, mask_BT = _pad([q.prompt for q in questions], pad_id=pad_id, left=True, device=model.device)
    slots_B = torch.tensor([q.slot for q in questions], device=model.device)
    cache = stacked.cache(slots_B)
    n_virtual = cache.get_seq_length()
    position_B = mask_BT.sum(1) + n_virtual
    rows = list(range(len(questions)))
    answers: list[list[int]] = [[] for _ in questions]
    step_ids, step_positions = ids_BT, (mask_BT.cumsum(1) - 1).clamp(min=0) + n_virtual
    mask_BT = torch.cat([mask_BT.new_ones(len(rows), n_virtual), mask_BT], dim=1)
    for _ in range(max_new_tokens):
        with stacked.rows(slots_B):
            logits_BTV = model(
                input_ids=step_ids,
                attention_mask=mask_BT,
                position_ids=step_positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits
        next_B = logits_BTV[:, -1].argmax(-1)
        going = []
        for place, token in enumerate(next_B.tolist()):
            if token not in end_ids:
                answers[rows[place]].append(token)
                going.append(place)
        if not going:
            break
        if len(going) < len(rows):
            kept = torch.tensor(going, device=model.device)
            cache.batch_select_indices(kept)
            next_B, mask_BT, slots_B, position_B = next_B[kept], mask_BT[kept], slots_B[kept], position_B[kept]
            rows = [rows[place] for place in going]
        mask_BT = torch.cat([mask_BT, mask_BT.new_ones(len(rows), 1)], dim=1)
        step_ids, step_positions = next_B[:, None], position_B[:, None]
        position_B = position_B + 1
    return [tuple(answer) for answer in answers]


@torch.inference_mode()
def reference_nll(stacked: StackedModel, questions: Sequence[Question], *, pad_id: int, batch_size: int) -> Float[np.ndarray, " question"]:
    """Return the mean negative log-likelihood per reference token, in nats, under each question's slot.

    The turns of one dialogue are read off one pass: an earlier turn with its reference is how the later prompt begins.
    """
    model: PreTrainedModel = stacked.model  # pyright: ignore[reportAssignmentType]
    nll = np.zeros(len(questions))
    passes = sorted(in_one_pass(questions), key=lambda together: -_length(questions[together[-1]]))
    alike = _by_prefix_length(stacked, range(len(passes)), [questions[together[-1]].slot for together in passes])
    for batch in ([passes[i] for i in group[start : start + batch_size]] for group in alike for start in range(0, len(group), batch_size)):
        longest = [questions[together[-1]] for together in batch]
        # Right padding under causal attention needs no mask: no real token sees a padded one.
        ids_BT, _ = _pad([q.prompt + q.reference for q in longest], pad_id=pad_id, left=False, device=model.device)
        predicts_BT = torch.zeros_like(ids_BT, dtype=torch.bool)
        for row, together in enumerate(batch):
            for question in (questions[i] for i in together):
                predicts_BT[row, len(question.prompt) - 1 : _length(question) - 1] = True
        targets = ids_BT[:, 1:][predicts_BT[:, :-1]]
        slots_B = torch.tensor([q.slot for q in longest], device=model.device)
        with stacked.rows(slots_B), logits_only_at(model, predicts_BT):
            logits = model(input_ids=ids_BT, past_key_values=_beginning(stacked, slots_B), use_cache=False).logits
        losses = functional.cross_entropy(logits.float(), targets, reduction="none")
        numbers = [i for together in batch for i in together]
        nll[numbers] = [float(part.mean()) for part in losses.split([len(questions[i].reference) for i in numbers])]
    return nll


def _beginning(stacked: StackedModel, slots_B: Tensor) -> DynamicCache | None:
    return stacked.cache(slots_B) if stacked.prefix_length(int(slots_B[0])) else None


def _length(question: Question) -> int:
    return len(question.prompt) + len(question.reference)


def in_one_pass(questions: Sequence[Question]) -> list[list[int]]:
    """Return the questions in groups, each question with its reference being how the next one's prompt begins."""
    order = sorted(range(len(questions)), key=lambda i: (questions[i].slot, questions[i].prompt + questions[i].reference))
    groups: list[list[int]] = []
    for number in order:
        before = questions[groups[-1][-1]] if groups else None
        now = questions[number]
        begins_alike = before is not None and before.slot == now.slot and now.prompt[: _length(before)] == before.prompt + before.reference
        # Without a reference between them, two of the same prompt would be read off the same place.
        if before is not None and begins_alike and (before.reference or now.prompt != before.prompt):
            groups[-1].append(number)
        else:
            groups.append([number])
    return groups


def _pad(rows: Sequence[Sequence[int]], *, pad_id: int, left: bool, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return ids and attention mask, [row, longest]."""
    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), pad_id, dtype=torch.long)
    mask = torch.zeros((len(rows), longest), dtype=torch.long)
    for number, row in enumerate(rows):
        where = slice(longest - len(row), longest) if left else slice(0, len(row))
        ids[number, where] = torch.tensor(row)
        mask[number, where] = 1
    return ids.to(device), mask.to(device)
