"""A base model whose files are damaged, missing or not what they seem is refused in one line that names the folder or the file."""

import importlib.util
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import MistralConfig, Qwen2Config

from clusterlora.cli import main
from clusterlora.errors import ModelUnavailable
from clusterlora.models.base import HOMELM_FOLDER, base_licence, base_revision, load_base, usable_base
from clusterlora.models.checks import forget_undeclared_windows
from clusterlora.models.loading import load_tokenizer
from clusterlora.ports.stores import Stores
from clusterlora.settings import ModelSettings, Study
from clusterlora.stages.prepare import prepare_study
from tests.fixtures.stages import LOG

WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(HOMELM_FOLDER, tmp_path / "base"))


def setting(file: str, **changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        settings = json.loads((folder / file).read_text(encoding="utf-8"))
        (folder / file).write_text(json.dumps({**settings, **changes}), encoding="utf-8")

    return change


def content(file: str, data: bytes) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / file).write_bytes(data)

    return change


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


def weights_as_a_folder(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).mkdir()


def weights_as_a_link_to_nothing(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to(folder / "nowhere")


def in_tokenizer(**changes: object) -> Callable[[Path], None]:
    return setting("tokenizer.json", **changes)


def of_its_model(**changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
        in_tokenizer(model={**model, **changes})(folder)

    return change


PANICS = (
    in_tokenizer(
        post_processor={
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "Q", "type_id": 0}}],
            "pair": [],
            "special_tokens": {},
        }
    ),
    in_tokenizer(normalizer={"type": "Precompiled", "precompiled_charsmap": "ABQCAA=="}),
    of_its_model(continuing_subword_prefix="é"),
)


@pytest.mark.parametrize("damage", PANICS)
def test_a_tokenizer_that_panics_is_refused_in_one_line_and_nothing_is_printed(
    folder: Path, damage: Callable[[Path], None], capfd: pytest.CaptureFixture[str]
) -> None:
    damage(folder)
    with pytest.raises(ModelUnavailable, match=r"the tokenizer in .* cannot be (used|loaded): ") as refusal:
        usable_base(str(folder))
    assert "\n" not in str(refusal.value)
    assert capfd.readouterr().err == ""


def half_of_the_weights(folder: Path) -> None:
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[: len(whole) // 2])


def index_of(*names: str) -> Callable[[Path], None]:
    weight_map = {f"w{number}": name for number, name in enumerate(names)}
    return content(f"{WEIGHTS}.index.json", json.dumps({"metadata": {}, "weight_map": weight_map}).encode())


def another_set_of_weights(folder: Path) -> None:
    shutil.copyfile(folder / WEIGHTS, folder / "model-00001-of-00001.safetensors")
    index_of("model-00001-of-00001.safetensors")(folder)


def another_output_layer(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    save_file({**weights, "lm_head.weight": weights["model.embed_tokens.weight"] + 1}, folder / WEIGHTS, metadata={"format": "pt"})


def a_weight_in_two_files(folder: Path) -> None:
    """Cut the weights into two files, of which both have one of them, with different values."""
    weights, first, second = load_file(folder / WEIGHTS), *(f"model-0000{number}-of-00002.safetensors" for number in (1, 2))
    doubled, *others = sorted(weights)
    (folder / WEIGHTS).unlink()
    save_file({doubled: weights[doubled]}, folder / first, metadata={"format": "pt"})
    save_file({**weights, doubled: weights[doubled] + 1}, folder / second, metadata={"format": "pt"})
    weight_map = {doubled: first, **dict.fromkeys(others, second)}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")


def integers(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    name = "model.layers.0.self_attn.q_proj.weight"
    save_file({**weights, name: (100 * weights[name]).to(torch.int8)}, folder / WEIGHTS, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (a_weight_in_two_files, r"model-00002-of-00002\.safetensors holds \S+, and so does model-00001-of-00002\.safetensors; bring"),
        (integers, r"holds model\.layers\.0\.self_attn\.q_proj\.weight as integers \(I8\), and config\.json has no quantization_config"),
        (weights_as_a_folder, "is a folder; point to a complete"),
        (weights_as_a_link_to_nothing, "is a link to nothing; point to a complete"),
        (
            content("tokenizer.json", LFS),
            "tokenizer.json is a pointer of Git LFS in the place of the file; get the file itself: git lfs pull",
        ),
        (
            setting("config.json", architectures=["OwnForCausalLM"], auto_map={"AutoModel": "own.Own"}),
            "is code of its own beside the weights",
        ),
        (setting("tokenizer_config.json", eos_token="<|nowhere|>"), r"has eos_token = <\|nowhere\|>, which the model does not know; name"),
        (half_of_the_weights, "cannot be loaded: "),
        (lambda folder: (folder / WEIGHTS).rename(folder / "model.fp16.safetensors"), "holds model.fp16.safetensors, and neither"),
        (lambda folder: (folder / "tokenizer.json").unlink(), r"holds no tokenizer \(such as tokenizer\.json\)"),
        (setting("config.json", architectures="BertModel"), "is a BertModel"),
        (setting("config.json", is_causal=False), "attends to what follows a token as well .is_causal = false"),
        (setting("config.json", num_key_value_heads=0), "a value in its JSON files is none that transformers can use"),
        (setting("config.json", rope_parameters={"rope_type": "linear"}), "cannot be loaded: Missing required keys in"),
        (another_output_layer, r"ties the output layer to the input embedding \(tie_word_embeddings\), and the weights hold another"),
        (
            index_of("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"),
            r"names model-00001-\S+ and 1 more, which the folder",
        ),
        (another_set_of_weights, r"holds model\.safetensors and an index of other files .*; keep one of them"),
        (content(f"{WEIGHTS}.index.json", b"[1]"), "is no index of weights"),
        (content(f"{WEIGHTS}.index.json", b'{"weight_map": {"w": [1]}}'), "is no index of weights"),
        (
            setting("config.json", rope_parameters={"rope_type": "hyper", "rope_theta": 1e4}),
            r"rope_parameters\.rope_type = 'hyper' \(config\.json\) is not known",
        ),
        (content(WEIGHTS, b""), "cannot be loaded: "),
        (setting("config.json", hidden_size="x"), "cannot be loaded: "),
        (setting("config.json", hidden_size=-3), "cannot be loaded: "),
        (setting("config.json", num_attention_heads=0), "cannot be loaded: "),
        (setting("config.json", num_hidden_layers=[1]), "cannot be loaded: "),
        (setting("config.json", num_hidden_layers=1_000_000), r"has num_hidden_layers = 1000000 \(config\.json\) and \d+ weights; "),
        (content("config.json", b'{"rms_norm_eps": 1e-6, "rms_norm_eps": 0.5}'), "config.json: 'rms_norm_eps' stands twice in an object"),
        (content("config.json", b"[]"), "config.json holds a JSON list, not an object"),
        (content("config.json", b"\xff{}"), "config.json is not JSON"),
        (content("generation_config.json", b"3"), "generation_config.json holds a JSON int, not an object"),
        (setting("generation_config.json", eos_token_id="x"), "eos_token_id = 'x', which is no id of a token"),
        (setting("generation_config.json", eos_token_id=[0, 1.5]), "eos_token_id = 1.5, which is no id of a token"),
        (setting("generation_config.json", eos_token_id=-1), "eos_token_id = -1, which is no id of a token"),
        (setting("config.json", head_dim=7), "cannot be loaded: .*: .*[Hh]ead"),
        (setting("tokenizer_config.json", unk_token=""), "has unk_token = '', which is no token of its vocabulary"),
        (setting("tokenizer_config.json", eos_token={"x": 1}), "cannot be loaded: "),
        (content("tokenizer.json", b"{}"), "the tokenizer in .* cannot be loaded: "),
        (content("chat_template.jinja", b"\xff\xfe\x80"), "cannot be loaded: "),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_damaged_folder_is_refused_in_one_line(folder: Path, damage: Callable[[Path], None], says: str) -> None:
    damage(folder)

    def look() -> None:
        base_revision(str(folder))
        usable_base(str(folder))

    with pytest.raises(ModelUnavailable, match=says) as refusal:
        look()
    assert str(folder) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_stored_output_layer_that_is_the_embedding_is_tied_like_one_that_is_not_stored(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    save_file({**weights, "lm_head.weight": weights["model.embed_tokens.weight"].clone()}, folder / WEIGHTS, metadata={"format": "pt"})
    usable_base(str(folder))
    model = load_base(str(folder)).model
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight  # pyrefly: ignore[missing-attribute]


def test_a_window_that_the_class_does_not_read_is_not_there_for_the_cache_either(folder: Path) -> None:
    setting("config.json", sliding_window=8)(folder)
    assert not hasattr(load_base(str(folder)).model.config, "sliding_window")
    for config in (MistralConfig(sliding_window=None), Qwen2Config(use_sliding_window=False)):
        forget_undeclared_windows(config)
        assert config.sliding_window is None, "a class that reads it keeps what it says, none included"


def test_the_same_weights_in_another_format_beside_those_of_the_index_are_no_other_weights(folder: Path) -> None:
    shutil.copyfile(folder / WEIGHTS, folder / "consolidated.safetensors")
    index_of(WEIGHTS)(folder)
    usable_base(str(folder))


@pytest.mark.parametrize(("file", "package"), [("tokenizer.model", "sentencepiece"), ("tekken.json", "mistral_common")])
def test_a_tokenizer_that_takes_a_package_names_it(folder: Path, file: str, package: str) -> None:
    (folder / "tokenizer.json").rename(folder / file)
    if importlib.util.find_spec(package) is not None:
        pytest.skip(f"{package} is installed")
    with pytest.raises(ModelUnavailable, match=f"holds its tokenizer as {file} alone, which takes the package {package}; install it"):
        load_tokenizer(folder)


def test_a_template_that_never_ends_is_refused_before_anything_is_recorded(folder: Path, seven: Study, stores: Stores) -> None:
    (folder / "chat_template.jinja").write_text("{% for i in range(10**9) %}x{% endfor %}")
    with pytest.raises(ModelUnavailable, match=r"chat template of .*base.* Range too big"):
        prepare_study(replace(seven, model=ModelSettings(base=str(folder))), stores, LOG)
    assert stores.studies.studies() == ()


def test_weights_that_are_no_numbers_are_refused_before_anything_is_recorded(folder: Path, seven: Study, stores: Stores) -> None:
    weights = load_file(folder / WEIGHTS)
    weights["model.norm.weight"] = torch.full_like(weights["model.norm.weight"], torch.nan)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(ModelUnavailable, match="likelihood of nan: its weights are damaged"):
        prepare_study(replace(seven, model=ModelSettings(base=str(folder))), stores, LOG)
    assert stores.studies.studies() == ()


def test_a_model_card_in_another_encoding_is_read_as_far_as_it_can_be(folder: Path) -> None:
    (folder / "README.md").write_bytes(b"---\nlicense: mit\n---\n\xff\xfe")
    assert base_licence(str(folder)) == "mit"


def test_the_doctor_refuses_a_base_that_cannot_be_asked(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--base-model", str(folder)]) in (0, 1)
    assert "base model" in capsys.readouterr().out
    (folder / "chat_template.jinja").write_text("{% for message in messages %}{{ message.content }}")
    assert main(["doctor", "--base-model", str(folder)]) == 1
    assert "BAD base model   the chat template of" in capsys.readouterr().out
