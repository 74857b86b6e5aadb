"""Rebuilding homelm: the same bytes from the same seed, and the shipped tokenizer from the shipped recipe."""

import json
from pathlib import Path

import pytest
import torch

from clusterlora.models.base import HOMELM_FOLDER, load_base
from clusterlora.models.build_homelm import END, PAD, SPECIAL_TOKENS, HomelmPlan, build

TINY = HomelmPlan(layers=1, hidden=32, intermediate=64, heads=2, key_value_heads=1, personas=20, dialogues=4, held_out_personas=12, steps=8)


class Curves:
    """A run log that keeps the points of every curve."""

    def __init__(self) -> None:
        self.points: dict[str, list[tuple[int, float]]] = {}

    def phase(self, name: str, *, total: int, unit: str) -> None: ...

    def advance(self, units: int = 1, **values: float) -> None: ...

    def metric(self, name: str, value: float, *, step: int) -> None:
        self.points.setdefault(name, []).append((step, value))

    def note(self, message: str) -> None: ...


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.whole
@pytest.mark.usefixtures("one_thread")
def test_the_same_seed_gives_the_same_bytes_and_another_seed_other_weights(tmp_path: Path) -> None:
    log = Curves()
    results = build(tmp_path / "a", seed=3, log=log, plan=TINY)
    torch.rand(5)  # the state of torch's global generator must not matter
    build(tmp_path / "b", seed=3, log=Curves(), plan=TINY)
    build(tmp_path / "c", seed=4, log=Curves(), plan=TINY)
    for name in ("model.safetensors", "tokenizer.json", "tokenizer_config.json", "config.json", "README.md"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    assert (tmp_path / "a" / "model.safetensors").read_bytes() != (tmp_path / "c" / "model.safetensors").read_bytes()
    losses = [loss for _, loss in log.points["loss"]]
    assert len(losses) == TINY.steps
    assert 0 < results["held_out_nll"] < losses[0]
    assert load_base(str(tmp_path / "a")).model.num_parameters() == results["parameters"]


@pytest.mark.whole
def test_building_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    build(tmp_path / "a", log=Curves(), plan=TINY)
    assert torch.equal(torch.rand(3), expected)


def test_the_shipped_tokenizer_has_one_token_per_role_and_ends_turns_with_its_end_token() -> None:
    tokenizer = load_base("homelm").tokenizer
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == list(range(len(SPECIAL_TOKENS)))
    assert (tokenizer.pad_token, tokenizer.eos_token) == (PAD, END)


def test_the_shipped_folder_is_what_the_default_plan_builds() -> None:
    config = json.loads((HOMELM_FOLDER / "config.json").read_text())
    plan = HomelmPlan()
    shape = ("num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size")
    assert [config[name] for name in shape] == [plan.layers, plan.hidden, plan.intermediate, plan.vocabulary]
    assert f"{plan.steps:,} steps" in (HOMELM_FOLDER / "README.md").read_text()
