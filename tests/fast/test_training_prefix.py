"""Prefixes trained together equal prefixes trained alone, and PEFT reads them as we do."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from clusterlora.chat.encoder import PromptEncoder, TokenSequence
from clusterlora.engine import training_loop
from clusterlora.engine.base import BaseModel
from clusterlora.engine.batch import RowSlots
from clusterlora.engine.generation import Question, generate, reference_nll
from clusterlora.engine.job import TrainingJob, TrainingResult
from clusterlora.engine.kinds import read_weights
from clusterlora.engine.ragged import RaggedRows
from clusterlora.engine.stacked import StackedModel, Weights
from clusterlora.engine.stacked_prefix import StackedPrefix
from clusterlora.models.base import load_base
from clusterlora.ports.run_log import SilentLog
from clusterlora.recipe import Recipe
from clusterlora.values import Turn

pytestmark = pytest.mark.numeric

RECIPE = Recipe(kind="prefix", rank=5, dropout=0.0, epochs=3, batch_size=2, learning_rate=2e-2)

in_float64 = pytest.mark.parametrize("base64", ["through transformers"], indirect=True)
"""Prefixes go through transformers either way."""


@pytest.fixture(scope="module")
def base(tiny_base_folder: Path) -> BaseModel:
    return load_base(str(tiny_base_folder))


def sequences(base: BaseModel, n: int, *, first: int) -> tuple[TokenSequence, ...]:
    encoder = PromptEncoder(base.tokenizer, max_length=256)
    return tuple(
        encoder.encode_dialogues([(Turn("user", "light " * ((i + first) % 4 + 1)), Turn("assistant", f"Set to {i * first}."))])[0]
        for i in range(n)
    )


def trained(base: BaseModel, folder: Path, sizes: dict[str, int]) -> dict[str, TrainingResult]:
    jobs = [TrainingJob(name, name, RECIPE, sequences(base, n, first=n + len(name)), folder / name) for name, n in sizes.items()]
    return {r.job.name: r for r in training_loop.train(base, jobs, micro_batch=2, run_log=SilentLog())}


def tensor(result: TrainingResult) -> torch.Tensor:
    return load_file(result.folder / "adapter_model.safetensors")["prompt_embeddings"]


@pytest.fixture(scope="module")
def prefixes(base: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, TrainingResult]:
    return trained(base, tmp_path_factory.mktemp("prefixes"), {"a": 5, "bb": 3, "ccc": 8})


@in_float64
def test_a_prefix_trained_with_others_equals_one_trained_alone(base64: BaseModel, tmp_path: Path) -> None:
    together = trained(base64, tmp_path / "together", {"a": 5, "bb": 3, "ccc": 8})["bb"]
    (alone,) = trained(base64, tmp_path / "alone", {"bb": 3}).values()
    assert tensor(alone).abs().max() > 0.01, "it has learned"
    torch.testing.assert_close(tensor(alone), tensor(together), rtol=0, atol=1e-9)
    assert alone.loss_fell


def test_peft_reads_a_prefix_as_we_do(base: BaseModel, prefixes: dict[str, TrainingResult], tiny_base_folder: Path) -> None:
    ids = torch.tensor([base.tokenizer("Set the light to 20.")["input_ids"]])
    ours = StackedModel(base.model)
    ours.load([read_weights(prefixes["a"].folder)])
    slots = torch.tensor([1])
    with ours.rows(slots), torch.inference_mode():
        logits = base.model(input_ids=ids, past_key_values=ours.cache(slots)).logits
    ours.close()
    peft = PeftModel.from_pretrained(load_base(str(tiny_base_folder)).model, str(prefixes["a"].folder))
    with torch.inference_mode():
        assert torch.allclose(logits, peft(input_ids=ids).logits, atol=1e-4)
        assert not torch.allclose(logits, base.model(input_ids=ids).logits, atol=1e-2)


def test_rows_with_and_without_prefix_answer_in_one_call_as_each_would_alone(base: BaseModel, prefixes: dict[str, TrainingResult]) -> None:
    stacked = StackedModel(base.model)
    stacked.load([read_weights(prefixes[name].folder) for name in prefixes])
    questions = [
        Question(tuple(base.tokenizer(text)["input_ids"]), slot, tuple(base.tokenizer(" to 10.")["input_ids"]))
        for text in ("Set", "Set the light to twenty and then", "light")
        for slot in (0, 1, 2, 3)
    ]
    options = {"end_ids": base.end_ids, "pad_id": base.pad_id, "max_new_tokens": 6}
    together = dict(generate(stacked, questions, **options, batch_size=32))
    nll = dict(reference_nll(stacked, questions, pad_id=base.pad_id, batch_size=32))
    for number, question in enumerate(questions):
        assert dict(generate(stacked, [question], **options, batch_size=1))[0] == together[number]
        assert dict(reference_nll(stacked, [question], pad_id=base.pad_id, batch_size=1)) == {0: pytest.approx(nll[number], rel=1e-4)}
    assert len({round(nll[slot], 4) for slot in range(4)}) == 4, "four slots, four models"
    stacked.close()


@in_float64
def test_the_gradient_of_a_prefix_equals_finite_differences(base64: BaseModel) -> None:
    rows = sequences(base64, 2, first=3)
    ids, predicts = RaggedRows.of(rows).padded(pad_id=base64.pad_id)
    stack = StackedPrefix(base64.model, n_slots=2, n_virtual=3)
    torch.manual_seed(0)
    stack.parameters.normal_(std=0.3)
    slot = torch.tensor([1, 1])

    def loss() -> torch.Tensor:
        with stack.rows(RowSlots(slot, torch.ones(2, 1))):
            logits = base64.model(input_ids=ids, use_cache=False).logits
        return torch.nn.functional.cross_entropy(logits[:, :-1][predicts[:, :-1]], ids[:, 1:][predicts[:, :-1]])

    loss().backward()
    assert torch.equal(stack.gradients[0], torch.zeros_like(stack.gradients[0]))
    step = 1e-4 * stack.gradients[1] / stack.gradients[1].norm()
    with torch.no_grad():
        stack.parameters[1] += step
        up = loss()
        stack.parameters[1] -= 2 * step
        down = loss()
    assert float(up - down) / 2e-4 == pytest.approx(float(stack.gradients[1].norm()), rel=1e-5)


def test_a_stack_of_prefix_and_nothing_else_has_no_factors(prefixes: dict[str, TrainingResult]) -> None:
    weights = read_weights(prefixes["a"].folder)
    assert weights.prefix is not None
    assert weights == Weights({}, weights.prefix)
    assert weights.prefix.shape[0] == RECIPE.rank
