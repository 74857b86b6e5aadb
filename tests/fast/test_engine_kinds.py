"""Adapters of every kind equal those of a plain loop over PEFT: the weights they are trained to, and what they make of the base."""

import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, PrefixTuningConfig, get_peft_model
from peft.utils import set_peft_model_state_dict
from safetensors.torch import load_file
from torch.nn import functional

from clusterlora.chat.encoder import PromptEncoder, TokenSequence
from clusterlora.engine.base import BaseModel
from clusterlora.engine.decoder_inference import DecoderInference
from clusterlora.engine.generation import Question, Reply
from clusterlora.engine.inference_backends import inference_backend
from clusterlora.engine.job import TrainingJob, TrainingResult, batches, initial_a, learning_rate
from clusterlora.engine.kinds import ADAPTER_KINDS, kind_of, read_weights
from clusterlora.engine.ragged import RaggedRows
from clusterlora.engine.training import train
from clusterlora.errors import BadData
from clusterlora.models.base import load_base
from clusterlora.ports.run_log import SilentLog
from clusterlora.recipe import Recipe
from clusterlora.values import Turn

pytestmark = pytest.mark.numeric

RECIPE = Recipe(
    rank=4, alpha=6, dropout=0.0, epochs=3, batch_size=2, learning_rate=1e-2, target_modules=("q_proj", "v_proj", "up_proj", "down_proj")
)


def peft_configs(base: BaseModel) -> Mapping[str, Any]:
    """Return what PEFT's documentation asks for, kind by kind."""
    lora: dict[str, Any] = {"r": 4, "lora_alpha": 6, "lora_dropout": 0.0, "target_modules": list(RECIPE.target_modules)}
    config: Any = base.model.config
    return {
        "lora": LoraConfig(**lora, task_type="CAUSAL_LM"),
        "rslora": LoraConfig(**lora, use_rslora=True, task_type="CAUSAL_LM"),
        "dora": LoraConfig(**lora, use_dora=True, task_type="CAUSAL_LM"),
        "ia3": IA3Config(target_modules=list(RECIPE.target_modules), feedforward_modules=["down_proj"], task_type="CAUSAL_LM"),
        "prefix": PrefixTuningConfig(
            num_virtual_tokens=4,
            num_layers=config.num_hidden_layers,
            num_attention_heads=config.num_key_value_heads,
            token_dim=config.num_key_value_heads * config.head_dim,
            num_transformer_submodules=1,
            task_type="CAUSAL_LM",
        ),
    }


@pytest.fixture
def job(base64: BaseModel, tmp_path: Path) -> Callable[[str], TrainingJob]:
    encoder = PromptEncoder(base64.tokenizer, max_length=256)
    turns = [(Turn("user", "light " * (i % 3 + 1)), Turn("assistant", f"Set to {i}.")) for i in range(5)]
    sequences = tuple(encoder.encode_dialogues(turns))
    return lambda kind: TrainingJob(kind, kind, replace(RECIPE, kind=kind), sequences, tmp_path / kind)


def nll(model: Any, rows: list[TokenSequence], *, pad_id: int) -> torch.Tensor:
    ids, predicts = RaggedRows.of(rows).padded(pad_id=pad_id)
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    return functional.cross_entropy(logits[:, :-1][predicts[:, :-1]], ids[:, 1:][predicts[:, :-1]])


def plain_peft(base: BaseModel, job: TrainingJob) -> PeftModel:
    """Return the base with an adapter trained by a loop as anybody would write it."""
    model: Any = get_peft_model(base.model, peft_configs(base)[job.recipe.kind])
    model.train()
    for name, parameter in model.named_parameters():
        if "lora_A" in name:
            layer = name.removeprefix("base_model.model.").partition(".lora_A.")[0]
            parameter.data.copy_(initial_a(layer, rank=4, d_in=parameter.shape[1], seed=0))
        if "prompt_encoder" in name:
            parameter.data = torch.zeros_like(parameter, dtype=torch.float64)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, weight_decay=0.0)
    for step in range(job.total_steps):
        optimiser.param_groups[0]["lr"] = learning_rate(job.recipe, step, job.total_steps)
        batch = batches(job, step // job.steps_per_epoch)[step % job.steps_per_epoch]
        nll(model, [job.sequences[i] for i in batch], pad_id=base.pad_id).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        optimiser.zero_grad()
    return model


def trained(base: BaseModel, job: TrainingJob) -> TrainingResult:
    (result,) = train(base, [job], micro_batch=2, run_log=SilentLog())
    return result


def flat(tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensor.flatten() for _, tensor in sorted(tensors.items())])


@pytest.mark.parametrize("kind", ADAPTER_KINDS)
def test_a_trained_adapter_equals_plain_peft_in_weights_and_logits(
    base64: BaseModel, job: Callable[[str], TrainingJob], kind: str, tmp_path: Path
) -> None:
    result = trained(base64, job(kind))
    ids = torch.tensor([[1, 5, 9, 2, 40, 41]])
    bare = base64.model(input_ids=ids).logits
    theirs: Any = plain_peft(base64, job(kind))
    theirs.save_pretrained(tmp_path / "theirs")
    theirs.eval()
    expected = theirs(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    if hasattr(theirs, "unload") and kind != "prefix":
        theirs.unload()
    one, other = load_file(result.folder / "adapter_model.safetensors"), load_file(tmp_path / "theirs" / "adapter_model.safetensors")
    assert one.keys() == other.keys()
    assert float((flat(one) - flat(other)).norm() / flat(other).norm()) < 1e-9
    again: Any = PeftModel.from_pretrained(base64.model, str(result.folder), autocast_adapter_dtype=False).double().eval()
    # PEFT makes a prefix in float32, whatever the base is.
    set_peft_model_state_dict(again, one)
    logits = again(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    assert float((logits - expected).detach().abs().max()) < 1e-9 * float(expected.detach().abs().max())
    assert not torch.allclose(expected, bare, atol=1e-3), "it has learned"


def test_what_is_written_says_what_peft_would_have_said(base64: BaseModel) -> None:
    for kind, theirs in peft_configs(base64).items():
        ours = ADAPTER_KINDS[kind].peft_config(base64, replace(RECIPE, kind=kind)).to_dict()
        theirs.base_model_name_or_path = base64.name
        assert {**ours, "target_modules": None} == {**theirs.to_dict(), "target_modules": None}, kind
        assert ADAPTER_KINDS[kind].describes(json.loads(json.dumps(ours, default=sorted)))


@pytest.mark.whole
@pytest.mark.parametrize("base64", ["written out"], indirect=True)
def test_questions_to_adapters_of_all_kinds_are_answered_in_one_call_as_each_alone(
    base64: BaseModel, job: Callable[[str], TrainingJob], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = [read_weights(trained(base64, job(kind)).folder) for kind in ADAPTER_KINDS]
    prompts = [tuple(base64.tokenizer(text)["input_ids"]) for text in ("Set", "light light", "and then")]
    reference = tuple(base64.tokenizer(" to 10.")["input_ids"])
    questions = [Question(prompt, slot, reference) for prompt in prompts for slot in range(len(weights) + 1)]
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        backend = inference_backend(base64, weights)
    assert [r.getMessage() for r in caplog.records] == ["2 of 5 adapters answer one after another: their kinds cannot share a pass"]
    decoder_slots: set[int] = set()
    reply_of_decoder = DecoderInference.reply

    def recorded(self: DecoderInference, asked: Sequence[Question], **options: Any) -> Iterator[Reply]:
        decoder_slots.update(question.slot for question in asked)
        return reply_of_decoder(self, asked, **options)

    monkeypatch.setattr(DecoderInference, "reply", recorded)
    replies = {reply.number: reply for reply in backend.reply(questions, max_new_tokens=5, batch_size=8)}
    low_rank = {slot for slot, kind in enumerate(ADAPTER_KINDS, start=1) if kind in ("lora", "rslora")}
    assert decoder_slots == {0, *low_rank}, "what the decoder can add takes no slower way because of what it cannot"
    assert sorted(replies) == list(range(len(questions)))
    for number, question in enumerate(questions):
        alone = inference_backend(base64, [weights[question.slot - 1]] if question.slot else [])
        (reply,) = alone.reply([replace(question, slot=min(question.slot, 1))], max_new_tokens=5, batch_size=1)
        assert reply.ids == replies[number].ids
        assert reply.nll == pytest.approx(replies[number].nll, rel=1e-6)
    assert len({round(replies[slot].nll, 6) for slot in range(len(weights) + 1)}) == len(weights) + 1, "as many models as slots"
    again = {reply.number: reply for reply in backend.reply(questions, max_new_tokens=5, batch_size=8)}
    assert again == replies, "what PEFT added is gone again"
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in base64.model.modules()), "hooks of answers are left"


def test_the_scale_of_rank_stabilised_lora_falls_with_the_root_of_the_rank() -> None:
    recipe = Recipe(rank=16, alpha=8)
    assert (ADAPTER_KINDS["lora"].scale(recipe), ADAPTER_KINDS["rslora"].scale(recipe)) == (0.5, 2.0)
    assert math.isclose(ADAPTER_KINDS["rslora"].scale(recipe), recipe.alpha / math.sqrt(recipe.rank))


def test_a_folder_of_another_kind_is_refused_with_the_kinds_there_are(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "VERA"}')
    with pytest.raises(BadData, match="is VERA; known kinds are lora, rslora, dora, ia3, prefix"):
        kind_of(tmp_path)


@pytest.mark.whole
def test_an_adapter_that_peft_cannot_add_to_this_base_is_refused(
    base64: BaseModel, job: Callable[[str], TrainingJob], deep_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = trained(base64, job("ia3")).folder
    other = load_base(str(deep_base))
    backend = inference_backend(other, [read_weights(folder)])
    layers = {name: type(layer) for name, layer in other.model.named_modules()}
    with pytest.raises(BadData, match="does not fit"):
        list(backend.reply([Question((3, 4), 1, ())], max_new_tokens=1, batch_size=1))
    assert {name: type(layer) for name, layer in other.model.named_modules()} == layers, "what PEFT added in part is gone"

    def exhausted(*_arguments: object) -> PeftModel:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(PeftModel, "from_pretrained", exhausted)
    with pytest.raises(torch.OutOfMemoryError):
        list(backend.reply([Question((3, 4), 1, ())], max_new_tokens=1, batch_size=1))
