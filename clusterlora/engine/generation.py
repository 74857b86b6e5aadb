"""Answers and reference likelihoods through an unmodified transformers model, each row with its own composition of adapters."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache, PreTrainedModel

from clusterlora.engine.placement import is_spread
from clusterlora.engine.ragged import RaggedRows
from clusterlora.engine.sampling import Sampling, sampler_of
from clusterlora.engine.stacked import StackedModel, logits_only_at

# legend: B row, T token, V vocabulary


@dataclass(frozen=True, slots=True)
class Question:
    """The ids of a prompt, the slot that answers it, the ids of the reference, and how tokens are drawn; None: the likeliest."""

    prompt: tuple[int, ...]
    slot: int
    reference: tuple[int, ...]
    sampling: Sampling | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to question `number`, without its end token, and the mean negative log-likelihood per reference token, in nats."""

    number: int
    ids: tuple[int, ...]
    nll: float


@torch.inference_mode()
def generate(
    stacked: StackedModel, questions: Sequence[Question], *, end_ids: frozenset[int], pad_id: int, max_new_tokens: int, batch_size: int
) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Yield (number of the question, ids of its answer without the end token), in any order.

    The longest prompts come first: batches are even, and a lack of memory shows early.
    """
    order = sorted(range(len(questions)), key=lambda i: -len(questions[i].prompt))
    for group in _by_prefix_length(stacked, order, [q.slot for q in questions]):
        for start in range(0, len(group), batch_size):
            batch = group[start : start + batch_size]
            answers = _continued(stacked, [questions[i] for i in batch], end_ids=end_ids, pad_id=pad_id, max_new_tokens=max_new_tokens)
            yield from zip(batch, answers, strict=True)


def _by_prefix_length(stacked: StackedModel, numbers: Sequence[int], slots: Sequence[int]) -> list[list[int]]:
    """Return the numbers in groups of equal prefix length, which a batch needs; no prefix has length 0."""
    groups: dict[int, list[int]] = {}
    for number in numbers:
        groups.setdefault(stacked.prefix_length(slots[number]), []).append(number)
    return list(groups.values())


def _continued(
    stacked: StackedModel, questions: Sequence[Question], *, end_ids: frozenset[int], pad_id: int, max_new_tokens: int
) -> list[tuple[int, ...]]:
    """Return the continuation of each left-padded prompt; finished rows are removed from the batch."""
    model: PreTrainedModel = stacked.model  # pyrefly: ignore[bad-assignment]
    ids_BT, mask_BT = _left_padded([q.prompt for q in questions], pad_id=pad_id, device=model.device)
    slots_B = torch.tensor([q.slot for q in questions], device=model.device)
    cache, spread = stacked.cache(slots_B), is_spread(model)
    n_virtual = cache.get_seq_length()
    position_B = mask_BT.sum(1) + n_virtual
    rows = list(range(len(questions)))
    answers: list[list[int]] = [[] for _ in questions]
    samplers = [sampler_of(question.sampling) for question in questions]
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
        for row, number in enumerate(rows):
            if sampler := samplers[number]:
                next_B[row] = sampler.draw(logits_BTV[row, -1])
        unfinished = []
        for row, token in enumerate(next_B.tolist()):
            if token not in end_ids:
                answers[rows[row]].append(token)
                unfinished.append(row)
        if not unfinished:
            break
        if len(unfinished) < len(rows):
            kept = torch.tensor(unfinished, device=model.device)
            # Keys and values of a spread model are where its layers are, and indices on the CPU are taken everywhere.
            cache.batch_select_indices(kept.cpu() if spread else kept)
            next_B, mask_BT, slots_B, position_B = next_B[kept], mask_BT[kept], slots_B[kept], position_B[kept]
            rows = [rows[row] for row in unfinished]
        mask_BT = torch.cat([mask_BT, mask_BT.new_ones(len(rows), 1)], dim=1)
        step_ids, step_positions = next_B[:, None], position_B[:, None]
        position_B = position_B + 1
    return [tuple(answer) for answer in answers]


@torch.inference_mode()
def reference_nll(stacked: StackedModel, questions: Sequence[Question], *, pad_id: int, batch_size: int) -> Iterator[tuple[int, float]]:
    """Yield (number of the question, mean negative log-likelihood per token of its reference, in nats) of those with one, in any order.

    One row scores all turns of a dialogue, because a later prompt begins with the earlier turns and their references.
    """
    model: PreTrainedModel = stacked.model  # pyrefly: ignore[bad-assignment]
    with_reference = [number for number, question in enumerate(questions) if question.reference]
    passes = in_one_pass([questions[number] for number in with_reference])
    dialogues = sorted(([with_reference[i] for i in turns] for turns in passes), key=lambda turns: -_length(questions[turns[-1]]))
    groups = _by_prefix_length(stacked, range(len(dialogues)), [questions[turns[-1]].slot for turns in dialogues])
    for batch in (
        [dialogues[i] for i in group[start : start + batch_size]] for group in groups for start in range(0, len(group), batch_size)
    ):
        last_turns = [questions[turns[-1]] for turns in batch]
        # Right padding under causal attention needs no mask: no real token attends to padding.
        rows = RaggedRows.with_predictions_in(
            [q.prompt + q.reference for q in last_turns], [[predicting_tokens(questions[i]) for i in turns] for turns in batch]
        )
        ids_BT, predicts_BT = (part.to(model.device) for part in rows.padded(pad_id=pad_id))
        slots_B = torch.tensor([q.slot for q in last_turns], device=model.device)
        with stacked.rows(slots_B), logits_only_at(model, predicts_BT, head_is_stacked=stacked.has_head):
            logits = model(input_ids=ids_BT, past_key_values=_prefix_cache(stacked, slots_B), use_cache=False).logits
        losses = functional.cross_entropy(logits.float(), rows.targets.to(model.device), reduction="none")
        numbers = [i for turns in batch for i in turns]
        parts = losses.split([len(questions[i].reference) for i in numbers])
        yield from zip(numbers, [float(part.mean()) for part in parts], strict=True)


def _prefix_cache(stacked: StackedModel, slots_B: Tensor) -> DynamicCache | None:
    return stacked.cache(slots_B) if stacked.prefix_length(int(slots_B[0])) else None


def _length(question: Question) -> int:
    return len(question.prompt) + len(question.reference)


def in_one_pass(questions: Sequence[Question]) -> list[list[int]]:
    """Return the numbers of questions that one row can answer: in a group, each prompt begins with the previous prompt and reference."""
    order = sorted(range(len(questions)), key=lambda i: (questions[i].slot, questions[i].prompt + questions[i].reference))
    groups: list[list[int]] = []
    for number in order:
        question = questions[number]
        previous = questions[groups[-1][-1]] if groups else None
        # Two questions of one prompt and without reference would share their only predicting token.
        if previous is not None and _continues(question, previous) and (previous.reference or question.prompt != previous.prompt):
            groups[-1].append(number)
        else:
            groups.append([number])
    return groups


def _continues(question: Question, previous: Question) -> bool:
    """Return whether a prompt begins with the previous prompt and its reference, under the same slot."""
    return question.slot == previous.slot and question.prompt[: _length(previous)] == previous.prompt + previous.reference


def predicting_tokens(question: Question, *, start: int = 0) -> range:
    """Return the positions, counted from the token `start`, whose predictions are read: one per token of the reference.

    Without reference that is one, for the answer's first token.
    """
    first = len(question.prompt) - 1 - start
    return range(first, first + max(1, len(question.reference)))


def _left_padded(rows: Sequence[Sequence[int]], *, pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return ids and attention mask, [row, longest]: the next tokens of all rows go into one column."""
    longest = max(len(row) for row in rows)
    ids = torch.tensor([[pad_id] * (longest - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    return ids.to(device), mask.to(device)
