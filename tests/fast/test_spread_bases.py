"""A base whose layers are on two devices, the second one pretended: the same adapters and answers, and what is no such base is refused."""

import copy
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import dispatch_model  # pyrefly: ignore[implicit-reexport]

from clusterlora.adapters.cache_key import settings_in_keys
from clusterlora.config import parse_setting, resolve
from clusterlora.engine import reference, training
from clusterlora.engine.base import BaseModel
from clusterlora.engine.families import decoder_of
from clusterlora.engine.generation import Question
from clusterlora.engine.inference_backends import inference_backend
from clusterlora.engine.job import TrainingJob
from clusterlora.engine.kinds import read_weights
from clusterlora.engine.placement import devices_of, is_spread, refuse_unusable_devices
from clusterlora.errors import BadSettings, ModelUnavailable
from clusterlora.models import loading
from clusterlora.models.base import load_base
from clusterlora.models.checks import refuse_unspreadable
from clusterlora.ports.run_log import SilentLog
from clusterlora.recipe import Recipe
from clusterlora.settings import PreparedModel
from tests.fixtures.families import difference, sequences
from tests.fixtures.pretended_device import ELSEWHERE, pretended_device

pytestmark = pytest.mark.numeric

RECIPE = Recipe(rank=2, alpha=6, dropout=0.0, epochs=1, batch_size=2, learning_rate=5e-3)
WITH_HEAD = (*RECIPE.target_modules, "lm_head")


@pytest.fixture
def two() -> Iterator[None]:
    with pretended_device():
        yield


@pytest.fixture
def whole(tiny_base_folder: Path) -> BaseModel:
    """Return a base whose head has weights of its own."""
    base = load_base(str(tiny_base_folder))
    model: Any = base.model
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone(), requires_grad=False)
    return base


def spread(base: BaseModel) -> BaseModel:
    """Spread a base as transformers' device_map does: the embedding and the first layer here, all that follows but the head elsewhere."""
    model: Any = base.model
    n_here = model.config.num_hidden_layers // 2
    layers = {f"model.layers.{i}": "cpu" if i < n_here else ELSEWHERE for i in range(model.config.num_hidden_layers)}
    rest = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.norm": ELSEWHERE, "lm_head": "cpu"}
    here: Any = "cpu"  # a device would be taken for another one than the CPU
    dispatched: Any = dispatch_model(model, {**layers, **rest}, main_device=here, skip_keys=model._skip_keys_device_placement)
    return replace(base, model=dispatched)


@pytest.fixture
def halves(whole: BaseModel, two: None) -> BaseModel:
    return spread(replace(whole, model=copy.deepcopy(whole.model)))


def jobs(folder: Path, **changes: Any) -> list[TrainingJob]:
    # Through PEFT, one after another, the second one would show nothing else.
    recipes = [replace(RECIPE, rank=2 + n, seed=n, **changes) for n in range(1 if changes.get("kind") == "dora" else 2)]
    return [TrainingJob(str(n), str(n), recipe, sequences(n)[1:], folder / str(n)) for n, recipe in enumerate(recipes)]


def test_tensors_of_two_devices_are_not_mixed(two: None) -> None:
    here, there = torch.ones(2, 2), torch.ones(2, 2).to(ELSEWHERE)
    assert [str(tensor.device) for tensor in (here, there, there @ there, there.cpu())] == ["cpu", "meta", "meta", "cpu"]
    with pytest.raises(RuntimeError, match="was asked of tensors on cpu and on"):
        _ = here @ there


@pytest.mark.whole
@pytest.mark.parametrize(
    ("changes", "of_peft"),
    [({}, "halves"), ({"target_modules": WITH_HEAD}, "whole"), ({"kind": "dora"}, "whole")],
    ids=["lora", "with the head", "dora"],
)
def test_adapters_of_a_spread_base_are_those_of_peft_on_it_and_on_a_whole_one(
    changes: dict[str, Any], of_peft: str, whole: BaseModel, halves: BaseModel, tmp_path: Path
) -> None:
    assert is_spread(halves.model)
    assert decoder_of(halves.model) is None
    base = {"whole": whole, "halves": halves}[of_peft]
    expected = {r.job.key: r for r in reference.train(base, jobs(tmp_path / "whole", **changes), micro_batch=64, run_log=SilentLog())}
    before = {name: module.__dict__.get("_old_forward") for name, module in halves.model.named_modules()}
    for result in training.train(halves, jobs(tmp_path / "spread", **changes), micro_batch=2, run_log=SilentLog()):
        assert difference(result, expected[result.job.key]) < 1e-3
        assert result.losses == pytest.approx(expected[result.job.key].losses, abs=1e-4)
    assert before == {name: module.__dict__.get("_old_forward") for name, module in halves.model.named_modules()}


@pytest.mark.whole
def test_a_spread_base_answers_with_many_adapters_at_once_as_a_whole_one_does(whole: BaseModel, halves: BaseModel, tmp_path: Path) -> None:
    trained = list(reference.train(whole, jobs(tmp_path, target_modules=WITH_HEAD), micro_batch=64, run_log=SilentLog()))
    weights = [read_weights(result.folder) for result in trained]
    start = sequences(9)[0].ids
    questions = [Question(start[: 6 + 3 * n], slot, start[:4]) for slot in (0, 1, 2) for n in range(3)]
    answers = []
    for base in (whole, halves):
        with closing(inference_backend(base, weights)) as backend:
            answers.append(sorted(backend.reply(questions, max_new_tokens=6, batch_size=8), key=lambda reply: reply.number))
    assert [one.ids for one in answers[0]] == [other.ids for other in answers[1]]
    assert [one.nll for one in answers[0]] == pytest.approx([other.nll for other in answers[1]], abs=1e-5)


def test_a_prefix_needs_a_base_on_one_device(halves: BaseModel, tmp_path: Path) -> None:
    with pytest.raises(
        BadSettings, match=r"kind prefix need a base on one device, and this one is on cpu, meta; use another kind, or model\.dev"
    ):
        list(training.train(halves, jobs(tmp_path, kind="prefix"), micro_batch=2, run_log=SilentLog()))


def test_peft_alone_cannot_adapt_the_head_of_a_spread_base(halves: BaseModel, tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match=r"kind dora on lm_head need a base on one device, .* leave lm_head out of recipe.target_modules"):
        list(training.train(halves, jobs(tmp_path, kind="dora", target_modules=WITH_HEAD), micro_batch=2, run_log=SilentLog()))


def test_without_several_gpus_a_base_that_may_be_spread_is_on_one_device(tiny_base_folder: Path) -> None:
    base = load_base(str(tiny_base_folder), device_map="auto")
    if torch.cuda.device_count() < 2:
        assert len(devices_of(base.model)) == 1
    assert base.revision == load_base(str(tiny_base_folder)).revision
    with pytest.raises(BadSettings, match="device_map 'balanced' is not supported; use none or auto"):
        load_base(str(tiny_base_folder), device_map="balanced")  # pyrefly: ignore[bad-argument-type]


def test_layers_that_would_be_computed_from_the_cpu_or_the_disk_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    loading.refuse_offloaded({"model.layers.0": 0, "model.layers.1": 1}, Path("large"))
    loading.refuse_offloaded({"": "cpu"}, Path("large"))
    with pytest.raises(ModelUnavailable, match=r"the model in large does not fit on the GPUs of this machine: .* from cpu and disk, which"):
        loading.refuse_offloaded({"a": 0, "b": "cpu", "c": "disk"}, Path("large"))
    with pytest.raises(ModelUnavailable, match="from disk, which"):
        loading.refuse_offloaded({"": "disk"}, Path("large"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ModelUnavailable, match="from cpu, which"):
        loading.refuse_offloaded({"": "cpu"}, Path("large"))


def test_a_gguf_file_is_not_spread(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").touch()
    with pytest.raises(
        ModelUnavailable, match=r"model.device_map = auto: the base model in .* is a GGUF file, which is dequantised on one dev"
    ):
        refuse_unspreadable(tmp_path, "auto")


def test_a_callers_model_on_several_devices_must_move_its_tensors_itself(whole: BaseModel, two: None) -> None:
    model: Any = whole.model
    refuse_unusable_devices(model)
    model.lm_head.weight = torch.nn.Parameter(torch.zeros(2, 2, device=ELSEWHERE), requires_grad=False)
    with pytest.raises(BadSettings, match="some of its weights are offloaded or were never loaded"):
        refuse_unusable_devices(model)


def test_where_a_base_is_held_is_no_part_of_what_it_computes() -> None:
    assert settings_in_keys(PreparedModel(device_map="auto")) == settings_in_keys(PreparedModel())
    assert "device_map" not in settings_in_keys(PreparedModel())
    assert resolve(None, None, {"model.device_map": "auto"}).model.device_map == "auto"
    assert parse_setting("model.device_map=none") == ("model.device_map", "none")
