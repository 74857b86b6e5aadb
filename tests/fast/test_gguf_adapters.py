"""Adapters as GGUF files: what llama.cpp computes from them is what PEFT computes, and llama.cpp itself gives the same answers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader
from tokenizers.processors import TemplateProcessing

from clusterlora.engine.kinds import read_weights
from clusterlora.errors import BadData
from clusterlora.models.base import load_base
from clusterlora.serving.export import export
from clusterlora.serving.exported import router_of_export
from clusterlora.serving.modelfile import modelfile
from clusterlora.stores.routing_table import read_routing_table
from tests.fixtures.registered import NAMES


def test_an_adapter_in_gguf_adds_what_its_peft_folder_adds(artifacts: Path, tiny_base_folder: Path, tmp_path: Path) -> None:
    peft, gguf = export(artifacts, tmp_path / "peft", "peft"), export(artifacts, tmp_path / "gguf", "gguf")
    config = load_base(str(tiny_base_folder)).model.config
    assert peft.adapter_by_persona == gguf.adapter_by_persona
    assert sorted(file.name for file in (tmp_path / "gguf" / "adapters").iterdir()) == [f"{name}.gguf" for name in peft.adapters]
    for name in peft.adapters:
        reader = GGUFReader(tmp_path / "gguf" / "adapters" / f"{name}.gguf")
        fields = {key: field.contents() for key, field in reader.fields.items()}
        assert [fields[key] for key in ("general.architecture", "general.type", "adapter.type")] == ["llama", "adapter", "lora"]
        tensors = {tensor.name: np.asarray(tensor.data) for tensor in reader.tensors}
        factors = read_weights(tmp_path / "peft" / "adapters" / name).factors
        assert len(tensors) == 2 * len(factors)
        for layer, (a, b) in factors.items():
            number, module = layer.split(".")[2], layer.rpartition(".")[2]
            place = f"blk.{number}.{NAMES[module]}.weight"
            down, up = tensors[f"{place}.lora_a"], tensors[f"{place}.lora_b"]
            update = fields["adapter.lora.alpha"] / up.shape[1] * up @ down
            expected = (b @ a).numpy()
            if module in ("q_proj", "k_proj"):
                n_heads = config.num_attention_heads if module == "q_proj" else config.num_key_value_heads
                head = expected.reshape(n_heads, len(expected) // n_heads, -1)
                half = head.shape[1] // 2
                # Rows that are rotated together stand side by side in llama.cpp.
                order = [row for pair in zip(range(half), range(half, 2 * half), strict=True) for row in pair]
                expected = head[:, order].reshape(expected.shape)
            np.testing.assert_allclose(update, expected, rtol=1e-5, atol=1e-5)


def test_a_modelfile_renders_as_the_study_does(artifacts: Path, tmp_path: Path) -> None:
    exported = export(artifacts, tmp_path / "out", "gguf")
    text = (tmp_path / "out" / f"{exported.default}.Modelfile").read_text()
    assert f"FROM ./base.gguf\nADAPTER ./adapters/{exported.default}.gguf\n" in text
    asked = "<|im_start|>system\n{{ .System }}<|im_end|>\n<|im_start|>user\n{{ .Prompt }}<|im_end|>\n"
    assert f'TEMPLATE """{asked}<|im_start|>assistant\n{{{{ .Response }}}}<|im_end|>' in text
    assert 'SYSTEM """Be brief."""' in text
    assert 'PARAMETER stop "<|im_end|>"' in text
    assert "ADAPTER" not in (tmp_path / "out" / "base.Modelfile").read_text()
    with pytest.raises(BadData, match="--format peft"):
        router_of_export(tmp_path / "out")
    serve = (tmp_path / "out" / "serve.sh").read_text()
    assert [f"--lora adapters/{name}.gguf" in serve for name in exported.adapters] == [True] * 2


@pytest.mark.parametrize("adds_bos", [True, False])
def test_a_modelfile_leaves_to_ollama_what_the_tokenizer_adds(artifacts: Path, tiny_base_folder: Path, *, adds_bos: bool) -> None:
    base, table = load_base(str(tiny_base_folder)), read_routing_table((artifacts / "routes.json").read_text())
    tokenizer: Any = base.tokenizer
    base.tokenizer.add_special_tokens({"bos_token": "<｜begin｜>"})
    base.tokenizer.chat_template = "{{ bos_token }}" + base.tokenizer.get_chat_template()
    if adds_bos:
        added = [("<｜begin｜>", base.tokenizer.bos_token_id)]
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<｜begin｜> $A", special_tokens=added)
    text = modelfile(base, table, None)
    assert ('TEMPLATE """<｜begin｜><|im_start|>' in text) != adds_bos
    assert ('TEMPLATE """<|im_start|>' in text) == adds_bos


@pytest.mark.parametrize(
    "change",
    [
        {"default": None},
        {"personas": {"ann": 3}},
        {"base_model": 3},
        {"max_length": 0},
        {"max_new_tokens": 0},
        {"system_prompt": None},
    ],
)
def test_routes_that_no_export_has_are_refused(change: dict[str, Any], tmp_path: Path) -> None:
    routes = {
        "study": "s",
        "base_model": "homelm",
        "dtype": "float32",
        "quantisation": "none",
        "system_prompt": "",
        "template_arguments": {},
    }
    routes |= {"template_date": None, "max_length": 64, "max_new_tokens": 8, "base_revision": "r", "labels": [], "personas": {}}
    (tmp_path / "routes.json").write_text(json.dumps(routes | {"default": "u-1"}))
    with pytest.raises(BadData, match="u-1 is missing"):
        router_of_export(tmp_path)
    (tmp_path / "routes.json").write_text(json.dumps(routes | {"default": "u-1"} | change))
    with pytest.raises(BadData, match="is not of a folder"):
        router_of_export(tmp_path)


def test_bases_that_were_not_tried_are_refused(
    artifacts: Path, tiny_base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = json.loads((tiny_base_folder / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    monkeypatch.setattr("clusterlora.serving.gguf_adapter.ARCHITECTURES", {"Qwen2ForCausalLM": "qwen2"})
    with pytest.raises(BadData, match="--format gguf is for Qwen2ForCausalLM; this base is LlamaForCausalLM"):
        export(artifacts, tmp_path / "out", "gguf")
