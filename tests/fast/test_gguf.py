"""A base in a GGUF file goes through the checks that a folder of safetensors goes through, when a study is prepared."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from clusterlora.errors import BadSettings, ModelUnavailable
from clusterlora.models.base import load_base, usable_base
from clusterlora.ports.run_log import SilentLog
from clusterlora.ports.stores import Stores
from clusterlora.stages.prepare import prepare_study
from tests.fast.test_base_checks import exchanges, study, write_rows

CONTEXT = 128


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=272,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)


def write(
    folder: Path, model: LlamaForCausalLM, tokenizer_of: Path, *, without: Sequence[str] = (), beside: Sequence[str] = (), other: str = ""
) -> Path:
    """Write a model as llama.cpp does, with rows of queries and keys in its order."""
    folder.mkdir()
    config: Any = model.config
    tokenizer: Any = AutoTokenizer.from_pretrained(tokenizer_of)
    writer = gguf.GGUFWriter(folder / "model.gguf", "llama")
    writer.add_name("tiny")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_rope_freq_base(10000.0)
    tokens = [token for token, _ in sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types([3 if token.startswith("<|") else 1 for token in tokens])
    writer.add_token_merges([])
    writer.add_eos_token_id(2)
    writer.add_chat_template(str(tokenizer.chat_template))
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for parameter, tensor in model.named_parameters():
        name, array = str(names.get_name(parameter, try_suffixes=(".weight",))), tensor.detach().numpy()
        if "q_proj" in parameter or "k_proj" in parameter:
            n_heads = config.num_attention_heads if "q_proj" in parameter else config.num_key_value_heads
            array = array.reshape(n_heads, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
        if name not in without:
            writer.add_tensor(name, np.ones((8, 8), np.float32) if name == other else np.ascontiguousarray(array))
    for name in beside:
        writer.add_tensor(name, np.ones(8, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder


def test_a_whole_file_is_the_model_it_was_written_from_and_tells_its_positions(
    model: LlamaForCausalLM, tiny_base_folder: Path, tmp_path: Path
) -> None:
    folder = write(tmp_path / "base", model, tiny_base_folder)
    base = usable_base(str(folder))
    assert (base.n_positions, base.n_trainable is not None) == (CONTEXT, True)
    loaded = dict(load_base(str(folder)).model.named_parameters())
    assert all(bool((loaded[name] == tensor).all()) for name, tensor in model.named_parameters())


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"without": ("blk.1.attn_q.weight",)}, r"lacks blk\.1\.attn_q\.weight, and they would be random numbers; get another file"),
        ({"beside": ("blk.7.attn_q.weight",)}, r"also holds blk\.7\.attn_q\.weight, and they would be left out"),
        ({"beside": ("rope_freqs.weight",)}, r"also holds rope_freqs\.weight, and they would be left out"),
        ({"other": "blk.0.ffn_up.weight"}, r"has of another shape blk\.0\.ffn_up\.weight"),
    ],
)
def test_a_file_with_other_tensors_than_its_model_asks_for_is_refused_with_their_names(
    written: dict[str, Any], message: str, model: LlamaForCausalLM, tiny_base_folder: Path, tmp_path: Path, stores: Stores
) -> None:
    folder = write(tmp_path / "base", model, tiny_base_folder, **written)
    with pytest.raises(ModelUnavailable, match=message):
        prepare_study(study(folder, write_rows(tmp_path / "people.jsonl", exchanges())), stores, SilentLog())
    assert not stores.studies.studies()


def test_a_truncated_file_is_refused_in_one_line(model: LlamaForCausalLM, tiny_base_folder: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "base", model, tiny_base_folder) / "model.gguf"
    whole = file.read_bytes()
    for n_bytes in (len(whole) - 100, len(whole) * 2 // 3, 1000, 10):
        file.write_bytes(whole[:n_bytes])
        with pytest.raises(ModelUnavailable, match=r"GGUF file .* is truncated or damaged \(.*\); get it again"):
            usable_base(str(file.parent))
        with pytest.raises(ModelUnavailable, match="is truncated or damaged"):
            load_base(str(file.parent))


def test_a_sequence_longer_than_the_context_of_a_file_is_refused_when_a_study_is_prepared(
    model: LlamaForCausalLM, tiny_base_folder: Path, tmp_path: Path, stores: Stores
) -> None:
    folder = write(tmp_path / "base", model, tiny_base_folder)
    with pytest.raises(BadSettings, match=rf"model\.max_length = 256 and .* exceed the {CONTEXT} positions"):
        prepare_study(study(folder, write_rows(tmp_path / "people.jsonl", exchanges()), max_length=256), stores, SilentLog())
