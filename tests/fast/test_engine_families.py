"""Every family of base models, written out and through transformers, trains and answers as plain PEFT does."""

import gc
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from weakref import ref

import pytest
import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from clusterlora.chat.encoder import TokenSequence
from clusterlora.engine import backends, inference_backends, reference, training_loop
from clusterlora.engine.base import BaseModel
from clusterlora.engine.families import FAMILIES, decoder_of
from clusterlora.engine.generation import Question
from clusterlora.engine.job import TrainingJob, TrainingResult
from clusterlora.engine.kinds import read_weights
from clusterlora.engine.peft_folder import read_peft_tensors
from clusterlora.models.base import load_base
from clusterlora.ports.run_log import SilentLog
from clusterlora.recipe import Recipe

pytestmark = pytest.mark.numeric

RECIPE = Recipe(rank=3, alpha=6, dropout=0.0, epochs=2, batch_size=2, learning_rate=5e-3)
ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
WIDTH: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
ALTERNATING = ["sliding_attention", "full_attention", "sliding_attention"]


@dataclass(frozen=True)
class Tiny:
    """A tiny random model of one transformers class, and the layers its adapters are on."""

    architecture: str
    config: dict[str, Any]
    targets: tuple[str, ...] = ALL


TINY = {
    "llama": Tiny("Llama", WIDTH),
    "llama with biases": Tiny("Llama", {**WIDTH, "attention_bias": True, "mlp_bias": True}),
    "qwen2": Tiny("Qwen2", WIDTH, ("q_proj", "v_proj", "up_proj")),
    "qwen2 with windows": Tiny("Qwen2", {**WIDTH, "use_sliding_window": True, "sliding_window": 5, "layer_types": ALTERNATING}),
    "qwen3": Tiny("Qwen3", WIDTH),
    "mistral": Tiny("Mistral", {**WIDTH, "sliding_window": 6}),
    "mistral without window": Tiny("Mistral", {**WIDTH, "sliding_window": None}),
    "phi3": Tiny("Phi3", {**WIDTH, "head_dim": 8, "sliding_window": 7}, ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")),
    "phi3 rotated in part": Tiny(
        "Phi3",
        {
            **WIDTH,
            "head_dim": 8,
            "partial_rotary_factor": 0.5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
        },
        ("qkv_proj", "down_proj"),
    ),
    "gemma2": Tiny(
        "Gemma2",
        {
            **WIDTH,
            "layer_types": ALTERNATING,
            "sliding_window": 5,
            "query_pre_attn_scalar": 24,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
        },
    ),
    "gemma3": Tiny("Gemma3", {**WIDTH, "layer_types": ALTERNATING, "sliding_window": 5, "query_pre_attn_scalar": 24}),
    "gpt2": Tiny(
        "GPT2",
        {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 128, "scale_attn_by_inverse_layer_idx": True},
        ("c_attn", "c_proj", "c_fc"),
    ),
    "gpt_neox": Tiny(
        "GPTNeoX",
        {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4},
        ("query_key_value", "dense_4h_to_h"),
    ),
}
WRITTEN_OUT = [name for name in TINY if name != "gpt_neox"]
PASSES = [*((name, True) for name in WRITTEN_OUT), *((name, False) for name in ("phi3", "gemma2", "gemma3", "gpt2", "gpt_neox", "mistral"))]


def model_of(tiny: Tiny, vocabulary: int) -> Any:
    """Return a model with random weights in float64 throughout."""
    plural = "TextConfig" if tiny.architecture == "Gemma3" else "Config"
    ids = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
    config = getattr(transformers, tiny.architecture + plural)(vocab_size=vocabulary, **ids, **tiny.config)
    suffix = "LMHeadModel" if tiny.architecture == "GPT2" else "ForCausalLM"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, tiny.architecture + suffix)(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter.data, std=0.3)
    return model.double().eval().requires_grad_(False)


@pytest.fixture
def base_of(
    tiny_base_folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], BaseModel]:
    """Return a function from a name in TINY to a base in float64; transformers' norms and softmax would compute in float32."""
    plain = load_base(str(tiny_base_folder))

    def norm(self: Any, x: Tensor) -> Tensor:
        weight = self.weight + 1 if type(self).__name__.startswith("Gemma") else self.weight
        eps = self.eps if hasattr(self, "eps") else self.variance_epsilon
        return weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)

    def softmax(x: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.softmax(x, dim)

    def base(name: str) -> BaseModel:
        model = model_of(TINY[name], plain.model.config.vocab_size)
        for norm_class in {type(module) for module in model.modules() if type(module).__name__.endswith("RMSNorm")}:
            monkeypatch.setattr(norm_class, "forward", norm)
        folder = tmp_path_factory.mktemp("base")
        model.config.save_pretrained(folder)
        model.name_or_path = model.config.name_or_path = str(folder)
        return replace(plain, model=model, name=str(folder))

    monkeypatch.setattr(functional, "softmax", softmax)
    return base


def through_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (backends, inference_backends):
        monkeypatch.setattr(module, "decoder_of", lambda _model: None)


def sequences(seed: int) -> tuple[TokenSequence, ...]:
    """Return dialogues of 9 to 30 tokens, longer than every window."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for length in (30, 9, 17, 22, 12):
        ids = torch.randint(3, 250, (length,), generator=generator).tolist()
        rows.append(TokenSequence(tuple(ids), tuple(position % 7 > 3 or position == length - 1 for position in range(length))))
    return tuple(rows)


def jobs(name: str, folder: Path) -> list[TrainingJob]:
    recipe = replace(RECIPE, target_modules=TINY[name].targets)
    return [TrainingJob(str(n), str(n), replace(recipe, rank=2 + n, seed=n), sequences(n), folder / str(n)) for n in range(2)]


def difference(one: TrainingResult, other: TrainingResult) -> float:
    """Return the largest difference of any tensor, relative to its largest entry."""
    ours, theirs = (read_peft_tensors(result.folder) for result in (one, other))
    assert ours.keys() == theirs.keys()
    return max(float((ours[n].double() - theirs[n].double()).abs().max() / theirs[n].abs().max()) for n in theirs)


@pytest.mark.parametrize(("name", "written_out"), PASSES)
def test_adapters_trained_together_equal_those_of_plain_peft(
    name: str, written_out: bool, base_of: Callable[[str], BaseModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = base_of(name), base_of(name)
    assert (decoder_of(ours.model) is not None) == (name in WRITTEN_OUT)
    if not written_out:
        through_transformers(monkeypatch)
    results = {r.job.key: r for r in training_loop.train(ours, jobs(name, tmp_path / "ours"), micro_batch=2, run_log=SilentLog())}
    expected = {r.job.key: r for r in reference.train(theirs, jobs(name, tmp_path / "theirs"), micro_batch=64, run_log=SilentLog())}
    assert max(difference(results[key], expected[key]) for key in expected) < 1e-9
    # PEFT's configuration, fan_in_fan_out of a Conv1D included, is what PEFT itself would write.
    configs = [(result["0"].folder / "adapter_config.json").read_text() for result in (results, expected)]
    assert '"fan_in_fan_out": true' in configs[0] if name == "gpt2" else '"fan_in_fan_out": false' in configs[0]
    assert ('"fan_in_fan_out": true' in configs[0]) == ('"fan_in_fan_out": true' in configs[1])


def greedy(model: Any, prompt: tuple[int, ...], n: int) -> tuple[int, ...]:
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(n):
            ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return tuple(ids[len(prompt) :])


@pytest.mark.parametrize(("name", "written_out"), PASSES)
def test_answers_of_many_adapters_in_one_batch_are_those_of_peft_token_for_token(
    name: str, written_out: bool, base_of: Callable[[str], BaseModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = base_of(name), base_of(name)
    if not written_out:
        through_transformers(monkeypatch)
    trained = list(reference.train(base_of(name), jobs(name, tmp_path), micro_batch=64, run_log=SilentLog()))
    folders = [result.folder for result in sorted(trained, key=lambda result: result.job.key)]
    # Shared beginnings, so that prefixes are computed once; longer than every window.
    start = sequences(9)[0].ids * 3
    questions = [Question(start[: 70 + 5 * n] + sequences(n)[1].ids, slot, start[:3]) for slot in (1, 2, 0) for n in range(3)]
    backend = inference_backends.inference_backend(ours, [read_weights(folder) for folder in folders])
    replies = {reply.number: reply for reply in backend.reply(questions, max_new_tokens=12, batch_size=8)}
    backend.close()
    for slot in (0, 1, 2):
        model = PeftModel.from_pretrained(base_of(name).model, str(folders[slot - 1])).eval() if slot else theirs.model
        for number in (number for number, question in enumerate(questions) if question.slot == slot):
            ids = questions[number].prompt + questions[number].reference
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
            targets = torch.tensor(ids[-3:])
            assert replies[number].nll == pytest.approx(float(torch.nn.functional.cross_entropy(logits[-4:-1], targets)), rel=1e-5)
            answer = greedy(model, questions[number].prompt, 12)
            end = next((i for i, token in enumerate(answer) if token in ours.end_ids), len(answer))
            assert replies[number].ids == answer[:end]


def test_the_family_that_docs_engine_adds_equals_plain_peft(
    base_of: Callable[[str], BaseModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "engine.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    exec(page.rpartition("```python\n")[2].partition("```")[0], names)
    config = {**WIDTH, "sliding_window": 6, "use_bias": True}
    monkeypatch.setitem(TINY, "starcoder2", Tiny("Starcoder2", config, ("q_proj", "v_proj", "c_fc", "c_proj")))
    monkeypatch.setitem(FAMILIES, "Starcoder2ForCausalLM", names["Starcoder2"])
    ours, theirs = base_of("starcoder2"), base_of("starcoder2")
    assert type(decoder_of(ours.model)) is names["Starcoder2"]
    (result, _) = training_loop.train(ours, jobs("starcoder2", tmp_path / "ours"), micro_batch=2, run_log=SilentLog())
    expected = reference.train(theirs, jobs("starcoder2", tmp_path / "theirs"), micro_batch=64, run_log=SilentLog())
    assert difference(result, next(r for r in expected if r.job.key == result.job.key)) < 1e-9


def test_a_base_of_no_family_runs_through_transformers_and_one_line_says_so(
    base_of: Callable[[str], BaseModel], caplog: pytest.LogCaptureFixture
) -> None:
    base = base_of("gpt_neox")
    with caplog.at_level(logging.WARNING):
        assert decoder_of(base.model) is decoder_of(base.model) is None
    (line,) = [record.getMessage() for record in caplog.records if record.name.startswith("clusterlora")]
    assert line.startswith("GPTNeoXForCausalLM runs through transformers, several times slower: engine/families writes out Llama")


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
def test_a_written_out_model_is_freed_with_its_last_user(name: str) -> None:
    model = model_of(TINY[name], 300)
    decoder_of(model)
    alive = ref(model)
    del model
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("llama", {"hidden_act": "relu"}, "its activation is relu"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "its rotary embeddings are dynamic"),
        ("gemma3", {"use_bidirectional_attention": True}, "its attention is bidirectional"),
    ],
)
def test_a_configuration_that_its_family_does_not_compute_is_not_written_out(
    name: str, change: dict[str, Any], reason: str, tiny_base_folder: Path
) -> None:
    model = model_of(replace(TINY[name], config=TINY[name].config | change), 300)
    assert FAMILIES[type(model).__name__].unsupported(model) == reason


def test_the_weights_of_a_trained_conv1d_adapter_load_in_peft(base_of: Callable[[str], BaseModel], tmp_path: Path) -> None:
    (result, _) = training_loop.train(base_of("gpt2"), jobs("gpt2", tmp_path), micro_batch=2, run_log=SilentLog())
    tensors = load_file(result.folder / "adapter_model.safetensors")
    loaded = PeftModel.from_pretrained(base_of("gpt2").model, str(result.folder)).state_dict()
    name = "base_model.model.transformer.h.0.attn.c_attn.lora_B"
    assert torch.equal(loaded[f"{name}.default.weight"].double(), tensors[f"{name}.weight"].double())
