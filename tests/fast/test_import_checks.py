"""An adapter from elsewhere answers here as it does in PEFT, or is refused in one line that names what is wrong."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from clusterlora.adapters.import_checks import check_imported
from clusterlora.engine import stacked
from clusterlora.engine.base import BaseModel
from clusterlora.engine.kinds import read_weights
from clusterlora.engine.stacked import read_adapter
from clusterlora.errors import BadData
from clusterlora.models.base import load_base
from tests.fixtures.imported import change_config, change_tensors, write_adapter, write_by_peft

Q_PROJ = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def base(tiny_base_folder: Path) -> BaseModel:
    return load_base(str(tiny_base_folder))


@pytest.fixture
def folder(tmp_path: Path, tiny_base_folder: Path) -> Path:
    return write_adapter(tmp_path / "theirs", tiny_base_folder)


def refusal(folder: Path, base: BaseModel, *, any_base: bool = False) -> str:
    with pytest.raises(BadData) as refused:
        check_imported(folder, base, any_base=any_base)
    assert str(folder) in str(refused.value)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@contextmanager
def merged(base: BaseModel, folder: Path) -> Generator[None]:
    """Add an adapter to the weights of the base, as `read_adapter` reads it."""
    updates = {name: b @ a for name, (a, b) in read_adapter(folder).items()}
    for name, update in updates.items():
        base.model.get_parameter(f"{name}.weight").data += update
    yield
    for name, update in updates.items():
        base.model.get_parameter(f"{name}.weight").data -= update


def test_a_plain_adapter_passes_and_leaves_the_base_as_it_was(folder: Path, base: BaseModel) -> None:
    before = {name: parameter.clone() for name, parameter in base.model.named_parameters()}
    check_imported(folder, base, any_base=False)
    after = dict(base.model.named_parameters())
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_rank_stabilised_adapter_passes(folder: Path, base: BaseModel) -> None:
    change_config(folder, use_rslora=True)
    check_imported(folder, base, any_base=False)


PATTERNS = {
    "r": 2,
    "lora_alpha": 3,
    "target_modules": ["q_proj", "v_proj", "down_proj"],
    "rank_pattern": {"v_proj": 4, r"layers\.1\.mlp\.down_proj": 3},
    "alpha_pattern": {"layers.0.self_attn.q_proj": 11, "v_proj": 7},
}
"""Settings of PEFT with which no two layers of a block agree in rank and scale."""


@pytest.mark.parametrize("use_rslora", [False, True])
def test_layers_of_other_ranks_and_alphas_are_read_as_peft_reads_them(
    tmp_path: Path, base: BaseModel, tiny_base_folder: Path, use_rslora: bool
) -> None:
    theirs = write_by_peft(tmp_path / "theirs", tiny_base_folder, use_rslora=use_rslora, **PATTERNS)
    check_imported(theirs, base, any_base=False)
    factors = read_adapter(theirs)
    ranks = {name.removeprefix("model.layers."): len(a) for name, (a, _) in factors.items() if name.endswith(("v_proj", "down_proj"))}
    assert ranks == {"0.self_attn.v_proj": 4, "1.self_attn.v_proj": 4, "0.mlp.down_proj": 2, "1.mlp.down_proj": 3}


def test_an_alpha_of_a_layer_that_is_not_the_trained_one_is_noticed_by_the_logits(
    tmp_path: Path, base: BaseModel, tiny_base_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = write_by_peft(tmp_path / "theirs", tiny_base_folder, **PATTERNS)
    monkeypatch.setattr(stacked, "get_pattern_key", lambda _, name: name)
    assert "logits differ from PEFT's" in refusal(theirs, base)


@pytest.mark.whole
def test_a_dora_passes_and_leaves_the_base_as_it_was(tmp_path: Path, base: BaseModel, tiny_base_folder: Path) -> None:
    theirs = write_by_peft(tmp_path / "theirs", tiny_base_folder, use_dora=True, **PATTERNS)
    names = {name for name, _ in base.model.named_parameters()}
    check_imported(theirs, base, any_base=False)
    assert {name for name, _ in base.model.named_parameters()} == names


@pytest.mark.filterwarnings("ignore:PiSSA changes the base weights:UserWarning")  # PEFT loads the start beside it
def test_a_pissa_that_peft_has_converted_answers_as_the_model_that_was_trained(
    tmp_path: Path, base: BaseModel, tiny_base_folder: Path
) -> None:
    settings = LoraConfig(r=2, init_lora_weights="pissa", target_modules=["q_proj"], base_model_name_or_path=str(tiny_base_folder))
    trained = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_base_folder, dtype=torch.float32), settings)
    config: Any = trained.peft_config["default"]
    config.init_lora_weights = True  # as PEFT's guide has it: the start is read again as what it is
    trained.save_pretrained(str(tmp_path / "start"))
    config.init_lora_weights = "pissa"
    for name, parameter in trained.named_parameters():
        if "lora_" in name:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    trained.save_pretrained(str(tmp_path / "theirs"), path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    check_imported(tmp_path / "theirs", base, any_base=False)
    ids = torch.arange(3, 12)[None]
    with torch.inference_mode(), merged(base, tmp_path / "theirs"):
        torch.testing.assert_close(base.model(input_ids=ids).logits, trained(input_ids=ids).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({f"{Q_PROJ}.lora_magnitude_vector": torch.ones(5)}, "has shape (5,) for (32,)"),
        ({f"{Q_PROJ}.lora_magnitude_vector": torch.full((32,), float("nan"))}, "holds NaN or infinity"),
        ({f"{Q_PROJ}.lora_magnitude_vector": torch.ones(32, 1)}, "not a vector of floating-point numbers"),
        ({f"{Q_PROJ}.lora_magnitude_vector".replace("q_proj", "k_proj"): torch.ones(16)}, "of no layer that its settings target"),
        ({"base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight": torch.ones(2, 32)}, "of no layer that its settings target"),
    ],
    ids=["another size", "NaN", "a matrix", "another layer", "no such layer"],
)
def test_a_dora_with_tensors_that_peft_would_not_load_is_refused(
    tmp_path: Path, base: BaseModel, tiny_base_folder: Path, change: dict[str, torch.Tensor], says: str
) -> None:
    theirs = write_by_peft(tmp_path / "theirs", tiny_base_folder, use_dora=True, r=2, target_modules=["q_proj"])
    change_tensors(theirs, change)
    names = {name for name, _ in base.model.named_parameters()}
    assert says in refusal(theirs, base)
    assert {name for name, _ in base.model.named_parameters()} == names


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"use_dora": True}, "lora_magnitude_vector"),
        ({"rank_pattern": {"q_proj": 4}}, "has rank 2, but adapter_config.json says rank_pattern['q_proj']=4"),
        ({"rank_pattern": {"q_proj": "x"}}, "has rank_pattern['q_proj']='x'"),
        ({"rank_pattern": [4]}, "has rank_pattern=[4]; it must be an object"),
        ({"alpha_pattern": {"q_proj": None}}, "has alpha_pattern['q_proj']=None"),
        ({"alpha_pattern": {"q_proj(": 4}}, "no regular expression"),
        ({"modules_to_save": ["lm_head"]}, "replaces whole layers"),
        ({"bias": "all"}, "train it again with bias='none'"),
        ({"trainable_token_indices": [1]}, "embedding of tokens"),
        ({"init_lora_weights": "pissa"}, "path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "PISSA_16"}, "path_initial_model_for_weight_conversion"),
        ({"peft_type": "IA3"}, "is 'IA3', not LORA"),
        ({"r": 0}, "has r=0; a rank is a whole number of at least 1"),
        ({"r": "x"}, "has r='x'"),
        ({"target_modules": 3}, "has target_modules=3; it must be a list of names"),
        ({"target_modules": ["q_proj", 3]}, "it must be a list of names"),
        ({"r": 3}, "has rank 2, but adapter_config.json says r=3"),
        ({"lora_alpha": float("inf")}, "has lora_alpha=inf"),
        ({"lora_alpha": 10**30}, "it must be a number of at most 10,000"),
        ({"lora_alpha": None}, "has lora_alpha=None"),
    ],
)
def test_settings_that_change_answers_otherwise_are_refused_with_what_to_do(
    folder: Path, base: BaseModel, changes: dict[str, Any], says: str
) -> None:
    change_config(folder, **changes)
    assert says in refusal(folder, base)


@pytest.mark.parametrize(
    ("name", "tensor", "says"),
    [
        (f"{Q_PROJ}.lora_A.weight", torch.full((2, 32), float("nan")), "holds NaN or infinity"),
        (f"{Q_PROJ}.lora_B.weight", torch.full((32, 2), float("inf")), "holds NaN or infinity"),
        (f"{Q_PROJ}.lora_A.weight", torch.ones(2, 32, dtype=torch.long), "not a matrix of floating-point numbers"),
        (f"{Q_PROJ}.lora_A.weight", torch.ones(2), "not a matrix of floating-point numbers"),
        (f"{Q_PROJ}.lora_A.weight", torch.empty(0, 32), "has rank 0"),
        ("base_model.model.model.embed_tokens.lora_embedding_A", torch.ones(2, 32), "is no factor of a linear layer"),
        ("base_model.model.lm_head.weight", torch.ones(32, 32), "is no factor of a linear layer"),
    ],
    ids=["NaN", "infinity", "integers", "a vector", "no rank", "an embedding", "a whole layer"],
)
def test_tensors_that_are_no_plain_factors_are_refused_by_name(
    folder: Path, base: BaseModel, name: str, tensor: torch.Tensor, says: str
) -> None:
    change_tensors(folder, {name: tensor})
    message = refusal(folder, base)
    assert name in message
    assert says in message


def test_factors_that_peft_would_not_load_are_named(folder: Path, base: BaseModel) -> None:
    # The settings target q_proj alone, so PEFT leaves out the factors of k_proj, and a stack that adds them answers otherwise.
    k_proj = Q_PROJ.replace("q_proj", "k_proj")
    n_out = base.model.config.num_key_value_heads * 8
    change_tensors(folder, {f"{k_proj}.lora_A.weight": 3 * torch.ones(2, 32), f"{k_proj}.lora_B.weight": torch.randn(n_out, 2)})
    message = refusal(folder, base)
    assert k_proj in message
    assert "is of no layer that its settings target" in message
    assert "save it again with save_pretrained" in message


def test_another_base_of_the_same_shape_is_asked_for_explicitly(tmp_path: Path, base: BaseModel) -> None:
    theirs = write_adapter(tmp_path / "theirs", "somebody/other-base")
    message = refusal(theirs, base)
    assert "was made for base model 'somebody/other-base'" in message
    assert "--same-base" in message
    check_imported(theirs, base, any_base=True)


def test_the_same_base_in_another_place_is_the_same_base(tmp_path: Path, base: BaseModel, tiny_base_folder: Path) -> None:
    check_imported(write_adapter(tmp_path / "theirs", f"/elsewhere/{tiny_base_folder.name}"), base, any_base=False)


def test_another_revision_of_the_base_is_noticed(folder: Path, base: BaseModel) -> None:
    change_config(folder, revision="0123abc")
    assert "was made for revision 0123abc" in refusal(folder, base)


def test_layers_of_another_shape_are_refused(folder: Path, base: BaseModel) -> None:
    change_tensors(folder, {f"{Q_PROJ}.lora_A.weight": torch.ones(2, 48)})
    assert "does not fit base model" in refusal(folder, base)


def test_a_cut_file_is_no_adapter(folder: Path, base: BaseModel) -> None:
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    assert "cut or not what its name says" in refusal(folder, base)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {f"{Q_PROJ}.lora_A.default.weight": torch.ones(2, 32)},
            r"lora_A.default.weight, which is no factor of a linear layer as PEFT names",
        ),
        (
            {f"{Q_PROJ}.lora_A.weight": torch.full((2, 32), float("nan"))},
            r"q_proj.lora_A.weight, which is empty or not finite; train it again",
        ),
        ({f"{Q_PROJ}.lora_A.weight": torch.ones(0, 32)}, r"q_proj.lora_A.weight, which is empty or not finite; train it again"),
    ],
)
def test_a_folder_that_is_asked_for_answers_without_being_imported_is_read_whole_or_refused(
    folder: Path, change: dict[str, torch.Tensor], says: str
) -> None:
    assert read_weights(folder).factors
    change_tensors(folder, change)
    with pytest.raises(BadData, match=says):
        read_weights(folder)


def test_a_folder_without_safetensors_is_refused(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(BadData, match=r"has no adapter_model\.safetensors; save it with save_pretrained, pickled weights are never loaded"):
        read_weights(folder)
