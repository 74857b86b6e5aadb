"""Model families of transformers, tiny and random: what each is trained and asked by, equal to plain PEFT, as docs/models.md has it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import PeftModel
from torch.nn import functional

from clusterlora.engine import reference, training
from clusterlora.engine.base import BaseModel
from clusterlora.engine.families import decoder_of
from clusterlora.engine.generation import Question
from clusterlora.engine.inference_backends import inference_backend
from clusterlora.engine.job import TrainingJob, TrainingResult
from clusterlora.engine.kinds import ADAPTER_KINDS, read_weights
from clusterlora.engine.peft_folder import read_peft_tensors
from clusterlora.engine.stacked import read_adapter
from clusterlora.errors import BadData, ModelUnavailable
from clusterlora.models.base import load_base
from clusterlora.models.checks import refuse_recurrent
from clusterlora.models.targets import block_weights, resolved
from clusterlora.ports.run_log import SilentLog
from clusterlora.recipe import Recipe
from tests.fast.test_engine_families import greedy
from tests.fixtures.families import sequences

PAGE = Path(__file__).resolve().parents[2] / "docs" / "models.md"
RECIPE = Recipe(rank=2, alpha=6, dropout=0.0, epochs=2, batch_size=2, learning_rate=5e-3)

WIDTH: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
HEADS = {**WIDTH, "head_dim": 8}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4}
EXPERTS = {**WIDTH, "num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LATENT = {
    **WIDTH,
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
STATE = {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}

FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": WIDTH,
    "Qwen2": WIDTH,
    "Qwen3": WIDTH,
    "Mistral": WIDTH,
    "Gemma": HEADS,
    "Gemma2": HEADS,
    "Gemma3": HEADS,
    "Gemma4": {
        **HEADS,
        "global_head_dim": 16,
        "hidden_size_per_layer_input": 8,
        "layer_types": ["sliding_attention", "full_attention"],
        "sliding_window": 5,
        "use_bidirectional_attention": "vision",
    },
    "Phi": WIDTH,
    "Phi3": WIDTH,
    "Granite": WIDTH,
    "Olmo": WIDTH,
    "Olmo2": WIDTH,
    "SmolLM3": WIDTH,
    "GPT2": GPT,
    "GPTNeoX": WIDTH,
    "GPTJ": {**GPT, "rotary_dim": 4},
    "Falcon": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
    "OPT": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 48, "word_embed_proj_dim": 32},
    "Bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "Cohere": WIDTH,
    "Cohere2": WIDTH,
    "StableLm": WIDTH,
    "Starcoder2": WIDTH,
    "Nemotron": WIDTH,
    "Glm4": HEADS,
    "Exaone4": WIDTH,
    "Ernie4_5": WIDTH,
    "Lfm2": {**WIDTH, "layer_types": ["conv", "full_attention"]},
    "Mixtral": EXPERTS,
    "Qwen2Moe": {**EXPERTS, "shared_expert_intermediate_size": 24},
    "Qwen3Moe": EXPERTS,
    "Olmoe": EXPERTS,
    "GraniteMoe": EXPERTS,
    "GptOss": {**EXPERTS, "head_dim": 8},
    "Phimoe": EXPERTS,
    "GraniteMoeHybrid": {
        **WIDTH,
        "layer_types": ["full_attention"] * 2,
        "num_local_experts": 0,
        "shared_intermediate_size": 48,
        "mamba_n_heads": 8,
        "position_embedding_type": "rope",
    },
    "DeepseekV3": LATENT,
}
RECURRENT: dict[str, dict[str, Any]] = {
    "Mamba": STATE,
    "Mamba2": {**STATE, "num_heads": 8, "head_dim": 8, "n_groups": 1},
    "FalconMamba": STATE,
    "RecurrentGemma": {**WIDTH, "lru_width": 32},
    "Rwkv": {"hidden_size": 32, "num_hidden_layers": 2},
    "Jamba": {**EXPERTS, "mamba_d_state": 8, "use_mamba_kernels": False, "attn_layer_period": 2, "attn_layer_offset": 1},
    "MiniMax": EXPERTS,
    "Bamba": {**WIDTH, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8},
}


def model_of(name: str, config: dict[str, Any], vocabulary: int) -> Any:
    ids = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
    plural = "TextConfig" if name in ("Gemma3", "Gemma4") else "Config"
    suffix = next(suffix for suffix in ("ForCausalLM", "LMHeadModel") if hasattr(transformers, name + suffix))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, name + suffix)(getattr(transformers, name + plural)(vocab_size=vocabulary, **ids, **config))
        for key, parameter in model.named_parameters():
            torch.nn.init.normal_(parameter.data, std=0.1)
            if parameter.ndim == 1 and "norm" in key and not name.startswith("Gemma"):
                parameter.data += 1
    return model.eval().requires_grad_(False)


@pytest.fixture
def base_of(tiny_base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], BaseModel]:
    """Return a function from a family to a base of it, the same each time, whose folder holds its configuration."""
    plain = load_base(str(tiny_base_folder))

    def base(name: str) -> BaseModel:
        model = model_of(name, FAMILIES[name], plain.model.config.vocab_size)
        folder = tmp_path_factory.mktemp("base")
        model.config.save_pretrained(folder)
        model.name_or_path = model.config.name_or_path = str(folder)
        return replace(plain, model=model, name=str(folder))

    return base


def row_of(model: Any) -> str:
    """Return the row of docs/models.md on a model."""
    weights = block_weights(model)
    targets = resolved(RECIPE, weights).target_modules
    total = sum(weights.n_weights.values())
    left = [name for name, n in weights.n_weights.items() if not weights.reached(targets, name) and n > 0.05 * total]
    experts = f"{', '.join(weights.experts)}: through PEFT" if weights.experts else "refused" if weights.has_unreached_experts else ""
    path = "written out" if decoder_of(model) is not None else "through transformers"
    return f"| {type(model).__name__} | {path} | {', '.join(targets)} | {', '.join(left)} | {experts} |"


def jobs(recipe: Recipe, folder: Path) -> list[TrainingJob]:
    return [TrainingJob(str(n), str(n), replace(recipe, rank=2 + n, seed=n), sequences(n), folder / str(n)) for n in range(2)]


def assert_answers_are_those_of_peft(base_of: Callable[[], BaseModel], results: list[TrainingResult]) -> None:
    ours, folders = base_of(), [result.folder for result in sorted(results, key=lambda result: result.job.key)]
    start = sequences(9)[0].ids * 3
    questions = [Question(start[: 70 + 5 * n] + sequences(n)[1].ids, slot, start[:3]) for slot in (1, 2, 0) for n in range(2)]
    backend = inference_backend(ours, [read_weights(folder) for folder in folders])
    replies = {reply.number: reply for reply in backend.reply(questions, max_new_tokens=8, batch_size=8)}
    backend.close()
    for slot in (0, 1, 2):
        model = PeftModel.from_pretrained(base_of().model, str(folders[slot - 1])).eval() if slot else base_of().model
        for number in (number for number, question in enumerate(questions) if question.slot == slot):
            answer = greedy(model, questions[number].prompt, 8)
            end = next((i for i, token in enumerate(answer) if token in ours.end_ids), len(answer))
            assert replies[number].ids == answer[:end]
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([questions[number].prompt + start[:3]]), use_cache=False).logits[0]
            assert replies[number].nll == pytest.approx(float(functional.cross_entropy(logits[-4:-1], torch.tensor(start[:3]))), rel=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_trains_and_answers_as_plain_peft_on_the_layers_that_the_page_names(
    name: str, base_of: Callable[[str], BaseModel], tmp_path: Path
) -> None:
    base = base_of(name)
    weights = block_weights(base.model)
    recipe = resolved(RECIPE, weights)
    assert ADAPTER_KINDS["lora"].why_not_stacked(base, recipe) is None
    results = list(training.train(base, jobs(recipe, tmp_path / "ours"), micro_batch=2, run_log=SilentLog()))
    expected = {
        r.job.key: r for r in reference.train(base_of(name), jobs(recipe, tmp_path / "theirs"), micro_batch=64, run_log=SilentLog())
    }
    for result in results:
        ours, other = (read_peft_tensors(folder) for folder in (result.folder, expected[result.job.key].folder))
        assert ours.keys() == other.keys()
        for tensor in other:
            assert float((ours[tensor] - other[tensor]).abs().max()) < 1e-3 * float(other[tensor].abs().max())
        assert result.losses == pytest.approx(expected[result.job.key].losses, rel=1e-4)
    assert_answers_are_those_of_peft(lambda: base_of(name), list(expected.values()))
    assert row_of(base.model) in PAGE.read_text(encoding="utf-8").splitlines()


@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys did not match any targeted module:RuntimeWarning")
@pytest.mark.parametrize(
    ("name", "targets"),
    [("Mixtral", ("q_proj", "w1", "w2", "w3")), ("Qwen3Moe", ("q_proj", "gate_proj", "up_proj", "down_proj"))],
)
def test_the_experts_of_a_mixture_are_adapted_by_peft_one_adapter_after_another(
    name: str, targets: tuple[str, ...], base_of: Callable[[str], BaseModel], tmp_path: Path
) -> None:
    base, recipe = base_of(name), replace(RECIPE, target_modules=targets)
    assert resolved(recipe, block_weights(base.model)) == recipe
    assert ADAPTER_KINDS["lora"].why_not_stacked(base, recipe) == "PEFT alone adapts the weights of experts"
    results = list(training.train(base, jobs(recipe, tmp_path), micro_batch=2, run_log=SilentLog()))
    assert any(".experts." in tensor for tensor in read_peft_tensors(results[0].folder))
    with pytest.raises(BadData, match="adapts an embedding or experts"):
        read_adapter(results[0].folder)
    assert_answers_are_those_of_peft(lambda: base_of(name), results)


@pytest.mark.parametrize("name", RECURRENT)
def test_a_recurrent_family_is_refused_before_anything_is_trained_on_it(name: str) -> None:
    with torch.device("meta"):
        model = getattr(transformers, f"{name}ForCausalLM")(getattr(transformers, f"{name}Config")(vocab_size=300, **RECURRENT[name]))
    with pytest.raises(ModelUnavailable, match=f"is a {name}ForCausalLM, which keeps a recurrent state"):
        refuse_recurrent(model, "theirs")
    assert f"| {name}ForCausalLM | refused |" in PAGE.read_text(encoding="utf-8")
