"""llama.cpp itself loads exported adapters beside a base in GGUF, and gives the same greedy answers as the engine in float32."""

import json
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from gguf import GGUFWriter, get_tensor_name_map
from gguf.constants import MODEL_ARCH_NAMES

from clusterlora.engine.generation import Question
from clusterlora.engine.inference_backends import inference_backend
from clusterlora.engine.kinds import read_weights
from clusterlora.engine.peft_folder import write_peft_folder
from clusterlora.engine.stacked_lora import targeted_layers
from clusterlora.models.base import BaseModel, load_base
from clusterlora.recipe import Recipe
from clusterlora.serving.gguf_adapter import ARCHITECTURES, permuted, write_gguf

MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
N_NEW = 24


@pytest.fixture(params=["homelm", *(name.removesuffix("ForCausalLM") for name in ARCHITECTURES)])
def base(request: pytest.FixtureRequest, tiny_base_folder: Path) -> BaseModel:
    """Return homelm, or a tiny base of an architecture with random weights."""
    if request.param == "homelm":
        return load_base("homelm")
    plain = load_base(str(tiny_base_folder))
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
    more = {"Mistral": {"sliding_window": None}, "Qwen3": {"head_dim": 16}}.get(request.param, {})
    vocabulary = {"vocab_size": plain.model.config.vocab_size, "bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0}
    name = f"{request.param}ForCausalLM"
    config = getattr(transformers, f"{request.param}Config")(
        max_position_embeddings=512, architectures=[name], **sizes, **vocabulary, **more
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, name)(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter.data, std=0.3)
    return replace(plain, model=model.eval().requires_grad_(False))


def test_llama_cpp_gives_the_answers_of_the_engine(base: BaseModel, tmp_path: Path) -> None:
    xllamacpp = pytest.importorskip("xllamacpp", reason="llama.cpp is not installed; pip install xllamacpp")
    write_base(tmp_path / "base.gguf", base)
    weights = []
    for number, rank in enumerate((2, 5)):
        generator = torch.Generator().manual_seed(number)
        size = 0.05 if base.name == "homelm" else 0.3
        tensors = {}
        for name, layer in targeted_layers(base.model, MODULES).items():
            tensors[f"{name}.lora_A.weight"] = torch.randn(rank, layer.d_in, generator=generator) * size
            tensors[f"{name}.lora_B.weight"] = torch.randn(layer.d_out, rank, generator=generator) * size
        folder = tmp_path / f"adapter-{number}"
        write_peft_folder(folder, tensors, Recipe(rank=rank, alpha=3 * rank, target_modules=MODULES), base=base.name)
        weights.append(read_weights(folder))
        write_gguf(tmp_path / f"adapter-{number}.gguf", weights[-1].factors, base.model.config)
    prompts = [tuple(np.random.default_rng(seed).integers(3, 250, 20).tolist()) for seed in range(6)]
    questions = [Question(prompt, slot, ()) for slot in range(3) for prompt in prompts]
    ours = {reply.number: reply.ids for reply in inference_backend(base, weights).reply(questions, max_new_tokens=N_NEW, batch_size=8)}
    with llama_cpp(xllamacpp, tmp_path) as answer:
        theirs = {number: answer(question, base.end_ids) for number, question in enumerate(questions)}
    assert theirs == ours
    assert len(set(ours.values())) > 12, "adapters must change answers, or this could not tell them apart"


@contextmanager
def llama_cpp(xllamacpp: Any, folder: Path) -> Generator[Any]:
    """Yield a function from a question to llama.cpp's answer, computed in float32 throughout."""
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(folder / "base.gguf")
    parameters.n_ctx, parameters.n_parallel, parameters.warmup = 256, 1, False
    parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    parameters.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(folder / f"adapter-{n}.gguf"), 1.0) for n in range(2)]
    parameters.lora_init_without_apply = True
    server = xllamacpp.Server(parameters)

    def answer(question: Question, end_ids: frozenset[int]) -> tuple[int, ...]:
        scales = [{"id": number, "scale": float(question.slot == number + 1)} for number in range(2)]
        body = {
            "prompt": question.prompt,
            "n_predict": N_NEW,
            "temperature": 0,
            "return_tokens": True,
            "cache_prompt": False,
            "lora": scales,
        }
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{server.listening_address}/completion", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=60) as response:
            tokens = json.load(response)["tokens"]
        return tuple(tokens[: next((at for at, token in enumerate(tokens) if token in end_ids), len(tokens))])

    yield answer


def write_base(path: Path, base: BaseModel) -> None:
    """Write a base in GGUF, without its words: it is asked by ids."""
    config: Any = base.model.config
    architecture = ARCHITECTURES[config.architectures[0]]
    number = next(number for number, name in MODEL_ARCH_NAMES.items() if name == architecture)
    names = get_tensor_name_map(number, config.num_hidden_layers)
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer = GGUFWriter(path, architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([f"t{token}" for token in range(config.vocab_size)])
    writer.add_token_types([1] * config.vocab_size)
    writer.add_token_merges(["t 1"])
    writer.add_eos_token_id(min(base.end_ids))
    writer.add_add_bos_token(False)
    for name, tensor in base.model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        rows = tensor.float().numpy()
        if architecture == "llama" and any(part in name for part in ("q_proj", "k_proj")):
            rows = permuted(rows, config.num_attention_heads if "q_proj" in name else config.num_key_value_heads)
        writer.add_tensor(str(names.get_name(name, try_suffixes=(".weight", ".bias"))), np.ascontiguousarray(rows))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
