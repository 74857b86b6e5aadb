"""Answering with many adapters at once gives what PEFT gives one by one; choosing among arms sees val only."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch.nn import functional

from clusterlora.data.prompts import PromptEncoder
from clusterlora.errors import BadData
from clusterlora.evaluation.generate import Question, generate, reference_nll
from clusterlora.evaluation.select import select_arm
from clusterlora.models.base import BaseModel, load_base
from clusterlora.models.stacked import StackedModel, Weights, read_adapter, read_weights, stack_weights
from clusterlora.settings import Recipe
from clusterlora.stores.memory import SilentLog
from clusterlora.training.job import TrainingJob
from clusterlora.training.reference import train
from clusterlora.values import AdapterSpec, Layer, Turn

RECIPE = Recipe(rank=4, alpha=8, dropout=0.0, epochs=4, batch_size=2, learning_rate=2e-2)


@pytest.fixture(scope="module")
def base(tiny_base_folder: Path) -> BaseModel:
    return load_base(str(tiny_base_folder))


@pytest.fixture(scope="module")
def adapters(base: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three adapters of ranks 2, 4 and 6 that have learnt different answers."""
    encoder = PromptEncoder(base.tokenizer, max_length=256)
    root = tmp_path_factory.mktemp("adapters")
    jobs = [
        TrainingJob(
            str(number),
            AdapterSpec(name=f"a{number}", persona_ids=("p",), recipe=replace(RECIPE, rank=2 * number + 2)),
            tuple(encoder.encode_dialogue((Turn("user", f"ask {i}"), Turn("assistant", word * (i + 1)))) for i in range(4)),
            root / str(number),
        )
        for number, word in enumerate(("yes ", "no ", "perhaps "))
    ]
    return [result.folder for result in train(base, jobs, micro_batch=2, run_log=SilentLog())]


def questions(base: BaseModel) -> list[Question]:
    encoder = PromptEncoder(base.tokenizer, max_length=256)
    return [
        Question(encoder.encode_messages((Turn("user", f"ask {i} " * (i % 4 + 1)),)), i % 4, encoder.encode_response(f"yes {i}"))
        for i in range(11)
    ]


def dialogue_questions(base: BaseModel) -> list[Question]:
    """Two turns of each of three dialogues, asked of two slots, in an order that keeps nothing together."""
    encoder = PromptEncoder(base.tokenizer, max_length=256)
    asked = []
    for number in range(3):
        turns = (Turn("user", f"ask {number}"), Turn("assistant", f"yes {number}"), Turn("user", "more"), Turn("assistant", "no"))
        asked += [
            Question(encoder.encode_messages(turns[:end]), slot, encoder.encode_response(turns[end].text))
            for end in (3, 1)
            for slot in (1, 2)
        ]
    return asked[::2] + asked[1::2]


def stacked(base: BaseModel, adapters: list[Path]) -> StackedModel:
    model = StackedModel(base.model)
    model.load([read_weights(folder) for folder in adapters])
    return model


@torch.inference_mode()
def one_by_one(base: BaseModel, adapters: list[Path], question: Question, *, new_tokens: int) -> tuple[list[int], float]:
    """Return PEFT's own greedy answer and reference NLL, with only this question's adapter loaded."""
    plain = load_base(base.name)
    model = PeftModel.from_pretrained(plain.model, str(adapters[question.slot - 1])) if question.slot else plain.model
    model.eval()
    ids = torch.tensor([question.prompt])
    answer = model.generate(  # pyright: ignore[reportCallIssue]
        input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=new_tokens, pad_token_id=0, eos_token_id=2
    )
    text = [i for i in answer[0, ids.shape[1] :].tolist() if i != 2]
    whole = torch.tensor([question.prompt + question.reference])
    logits = model(input_ids=whole).logits[0, len(question.prompt) - 1 : -1]
    return text, float(functional.cross_entropy(logits, torch.tensor(question.reference)))


def test_mixed_batches_answer_token_for_token_like_peft_one_by_one(base: BaseModel, adapters: list[Path]) -> None:
    model, asked = stacked(base, adapters), questions(base)
    try:
        answers = dict(generate(model, asked, end_ids=base.end_ids, pad_id=0, max_new_tokens=12, batch_size=4))
        nll = reference_nll(model, asked, pad_id=0, batch_size=4)
    finally:
        model.close()
    assert sorted(answers) == list(range(len(asked)))
    for number, question in enumerate(asked):
        text, expected_nll = one_by_one(base, adapters, question, new_tokens=12)
        assert list(answers[number]) == text
        assert nll[number] == pytest.approx(expected_nll, rel=1e-4)
    assert len({answers[i] for i in range(4)}) > 1, "adapters that all answer alike would prove nothing"


def test_the_turns_of_a_dialogue_read_off_one_pass_have_the_likelihood_of_separate_passes(base: BaseModel, adapters: list[Path]) -> None:
    model, asked = stacked(base, adapters), dialogue_questions(base)
    try:
        together = reference_nll(model, asked, pad_id=0, batch_size=4)
    finally:
        model.close()
    assert len(asked) == 12
    for number, question in enumerate(asked):
        assert together[number] == pytest.approx(one_by_one(base, adapters, question, new_tokens=1)[1], rel=1e-4)


def test_closing_gives_the_base_model_back(base: BaseModel, adapters: list[Path]) -> None:
    ids = torch.tensor([questions(base)[0].prompt])
    before = base.model(input_ids=ids).logits
    model = stacked(base, adapters)
    with model.rows(torch.tensor([2])):
        assert not torch.allclose(base.model(input_ids=ids).logits, before)
    with model.rows(torch.tensor([0])):
        assert torch.allclose(base.model(input_ids=ids).logits, before, atol=1e-6)
    model.close()
    assert torch.equal(base.model(input_ids=ids).logits, before)


def test_a_stack_adds_its_layers_updates_each_with_its_weight(adapters: list[Path]) -> None:
    factors = {str(number): read_adapter(folder) for number, folder in enumerate(adapters)}
    both = stack_weights((Layer("0"), Layer("2", 0.25)), lambda name: Weights(factors[name]))
    for name, (a, b) in both.factors.items():
        expected = factors["0"][name][1] @ factors["0"][name][0] + 0.25 * factors["2"][name][1] @ factors["2"][name][0]
        assert torch.allclose(b @ a, expected, atol=1e-6)


def test_a_layer_of_weight_zero_changes_nothing(adapters: list[Path]) -> None:
    alone = read_adapter(adapters[0])
    both = stack_weights((Layer("0"), Layer("1", 0.0)), lambda name: read_weights(adapters[int(name)])).factors
    assert all(torch.equal(alone[name][0], both[name][0]) and torch.equal(alone[name][1], both[name][1]) for name in alone)


def test_an_adapter_of_another_base_is_refused_by_layer(base: BaseModel, adapters: list[Path]) -> None:
    factors = dict(read_adapter(adapters[0]))
    name, (a, b) = next(iter(factors.items()))
    model = StackedModel(base.model)
    with pytest.raises(BadData, match="belongs to another base"):
        model.load([Weights({name: (a[:, :-1], b)})])
    with pytest.raises(BadData, match=r"no layer model\.layers\.99"):
        model.load([Weights({"model.layers.99.q_proj": (a, b)})])
    model.close()


def test_an_arm_is_chosen_only_when_it_gains_more_than_the_margin() -> None:
    default = np.array([1.0, 1.2, 0.9, 1.1])
    slightly, clearly = default - np.array([0.3, -0.28, 0.1, -0.1]), default - np.array([0.30, 0.25, 0.35, 0.30])
    assert select_arm([default, slightly], higher_is_better=False, margin_se=1.0) == 0
    assert select_arm([default, slightly, clearly], higher_is_better=False, margin_se=1.0) == 2
    assert select_arm([default, clearly], higher_is_better=True, margin_se=0.0) == 0
    assert select_arm([default[:1], clearly[:1]], higher_is_better=False, margin_se=1.0) == 0
    assert select_arm([default[:1], clearly[:1]], higher_is_better=False, margin_se=0.0) == 1
