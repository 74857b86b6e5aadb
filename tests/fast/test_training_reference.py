"""The reference engine: its loss, resuming, and the folders it writes."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from clusterlora.chat.encoder import PromptEncoder, TokenSequence
from clusterlora.engine.base import BaseModel
from clusterlora.engine.job import TrainingJob, batches, initial_a, learning_rate
from clusterlora.engine.reference import train
from clusterlora.errors import OutOfMemory, TrainingDiverged
from clusterlora.models.base import load_base
from clusterlora.ports.run_log import SilentLog
from clusterlora.recipe import Recipe
from clusterlora.values import Turn

pytestmark = pytest.mark.numeric

RECIPE = Recipe(rank=4, alpha=8, dropout=0.0, epochs=2, batch_size=3, learning_rate=5e-3, target_modules=("q_proj", "v_proj", "down_proj"))


@pytest.fixture
def base(tiny_base_folder: Path) -> BaseModel:
    return load_base(str(tiny_base_folder))


def sequences(base: BaseModel, n: int) -> tuple[TokenSequence, ...]:
    encoder = PromptEncoder(base.tokenizer, max_length=256)
    return tuple(
        encoder.encode_dialogues([(Turn("system", "Home."), Turn("user", "light " * (i % 3 + 1)), Turn("assistant", f"Set to {i}."))])[0]
        for i in range(n)
    )


def job(
    base: BaseModel,
    scratch: Path,
    *,
    n: int = 7,
    recipe: Recipe = RECIPE,
    init_from: Path | None = None,
    frozen_adapter: Path | None = None,
) -> TrainingJob:
    return TrainingJob("key", "one", recipe, sequences(base, n), scratch, init_from, frozen_adapter)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def change(folder: Path) -> torch.Tensor:
    return torch.cat([t.flatten() for n, t in sorted(weights(folder).items()) if "lora_B" in n])


def test_training_lowers_the_loss_and_leaves_a_folder_that_plain_peft_loads(base: BaseModel, tmp_path: Path) -> None:
    (result,) = train(base, [job(base, tmp_path / "s", recipe=replace(RECIPE, epochs=6))], micro_batch=3, run_log=SilentLog())
    assert result.losses[-1] < result.losses[0] - 0.2
    loaded = PeftModel.from_pretrained(load_base(base.name).model, str(result.folder))
    assert any(bool(p.abs().sum() > 0) for n, p in loaded.named_parameters() if "lora_B" in n)


def test_the_base_model_is_left_as_it_was(base: BaseModel, tmp_path: Path) -> None:
    before = {n: p.clone() for n, p in base.model.named_parameters()}
    list(train(base, [job(base, tmp_path / "s")], micro_batch=3, run_log=SilentLog()))
    after = dict(base.model.named_parameters())
    assert before.keys() == after.keys()
    assert all(torch.equal(before[n], after[n]) for n in before)


@pytest.mark.parametrize("base64", ["through transformers"], indirect=True)
def test_halving_the_micro_batch_gives_the_same_trajectory(base64: BaseModel, tmp_path: Path) -> None:
    (whole,) = train(base64, [job(base64, tmp_path / "a")], micro_batch=3, run_log=SilentLog())
    (halved,) = train(base64, [job(base64, tmp_path / "b")], micro_batch=1, run_log=SilentLog())
    difference = (change(whole.folder) - change(halved.folder)).norm() / change(whole.folder).norm()
    assert difference < 1e-9
    assert whole.losses == pytest.approx(halved.losses, rel=1e-9)


class DiesAfter:
    """A run log that kills the training after so many steps, as a crash would."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def phase(self, name: str, *, total: int, unit: str) -> None: ...
    def metric(self, name: str, value: float, *, step: int) -> None: ...
    def note(self, message: str) -> None: ...
    def advance(self, units: int = 1, **values: float) -> None:
        # Steps without a loss were taken before the crash.
        self.left -= units if "loss" in values else 0
        if self.left < 0:
            raise KeyboardInterrupt


@pytest.mark.usefixtures("checkpoint_every_step")
def test_a_killed_training_resumes_after_its_last_epoch_and_ends_with_the_same_weights(base: BaseModel, tmp_path: Path) -> None:
    recipe = replace(RECIPE, epochs=3, dropout=0.1)
    (whole,) = train(base, [job(base, tmp_path / "a", recipe=recipe)], micro_batch=3, run_log=SilentLog())
    with pytest.raises(KeyboardInterrupt):
        list(train(base, [job(base, tmp_path / "b", recipe=recipe)], micro_batch=3, run_log=DiesAfter(7)))
    steps_left = DiesAfter(3)
    (resumed,) = train(base, [job(base, tmp_path / "b", recipe=recipe)], micro_batch=3, run_log=steps_left)
    assert steps_left.left == 0, "two of three epochs were done: only the last one is trained again"
    assert (change(whole.folder) - change(resumed.folder)).norm() / change(whole.folder).norm() < 1e-3
    assert resumed.losses == pytest.approx(whole.losses, rel=1e-4)


@pytest.mark.whole
def test_a_warm_start_begins_where_the_other_adapter_ended(base: BaseModel, tmp_path: Path) -> None:
    (first,) = train(base, [job(base, tmp_path / "a", recipe=replace(RECIPE, epochs=8))], micro_batch=3, run_log=SilentLog())
    (second,) = train(base, [job(base, tmp_path / "b", init_from=first.folder)], micro_batch=3, run_log=SilentLog())
    assert second.losses[0] < first.losses[0] - 0.2


@pytest.mark.whole
def test_a_residual_learns_on_top_of_a_frozen_adapter(base: BaseModel, tmp_path: Path) -> None:
    (under,) = train(base, [job(base, tmp_path / "a", recipe=replace(RECIPE, epochs=8))], micro_batch=3, run_log=SilentLog())
    before = weights(under.folder)
    (residual,) = train(base, [job(base, tmp_path / "b", frozen_adapter=under.folder)], micro_batch=3, run_log=SilentLog())
    assert residual.losses[0] < under.losses[0] - 0.2
    assert all(torch.equal(before[n], t) for n, t in weights(under.folder).items())
    assert weights(residual.folder).keys() == before.keys()


def test_a_loss_that_is_not_finite_is_an_error_that_names_the_adapter(base: BaseModel, tmp_path: Path) -> None:
    with pytest.raises(TrainingDiverged, match=r"adapter one .* lower recipe.learning_rate"):
        list(
            train(
                base, [job(base, tmp_path / "a", recipe=replace(RECIPE, learning_rate=1e18, epochs=9))], micro_batch=3, run_log=SilentLog()
            )
        )


def test_every_dialogue_is_seen_once_per_epoch_in_an_order_that_only_seed_and_epoch_decide(base: BaseModel, tmp_path: Path) -> None:
    one = job(base, tmp_path / "a")
    epochs = [batches(one, epoch) for epoch in range(2)]
    assert [sorted(i for batch in e for i in batch) for e in epochs] == [list(range(7))] * 2
    assert epochs[0] != epochs[1]
    assert batches(one, 1) == epochs[1]


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_the_learning_rate_warms_up_to_its_peak_and_never_exceeds_it(schedule: Literal["linear", "cosine", "constant"]) -> None:
    recipe = replace(RECIPE, schedule=schedule, warmup_ratio=0.1, learning_rate=1.0)
    rates = [learning_rate(recipe, step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0)
    assert rates.index(max(rates)) in (9, 10)
    if schedule != "constant":
        assert rates[-1] < 0.05
        assert rates[10:] == sorted(rates[10:], reverse=True)


def test_adapters_of_one_rank_share_their_first_a_and_differ_between_layers() -> None:
    a = initial_a("layers.0.q_proj", rank=4, d_in=32, seed=0)
    assert torch.equal(a, initial_a("layers.0.q_proj", rank=4, d_in=32, seed=0))
    assert not torch.equal(a, initial_a("layers.1.q_proj", rank=4, d_in=32, seed=0))
    assert not torch.equal(a, initial_a("layers.0.q_proj", rank=4, d_in=32, seed=1))
    assert float(a.abs().max()) <= 32**-0.5


def test_only_response_tokens_and_their_end_are_trained_on(base: BaseModel) -> None:
    (row,) = sequences(base, 1)
    trained = [i for i, is_response in zip(row.ids, row.is_response, strict=True) if is_response]
    assert base.tokenizer.decode(trained) == "Set to 0.<|im_end|>"


def test_prompts_in_evaluation_are_the_tokens_before_the_answer_in_training(base: BaseModel) -> None:
    encoder = PromptEncoder(base.tokenizer, max_length=256)
    turns = (Turn("system", "S"), Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c"), Turn("assistant", "d"))
    (whole,) = encoder.encode_dialogues([turns])
    for end in (2, 4):
        prompt = encoder.encode_messages(turns[:end])
        assert whole.ids[: len(prompt)] == prompt
        assert whole.is_response[len(prompt)]
        assert not whole.is_response[len(prompt) - 1]
    rendered = base.tokenizer.apply_chat_template(
        [{"role": t.role, "content": t.text} for t in turns[:4]], tokenize=False, add_generation_prompt=True
    )
    assert base.tokenizer.decode(list(encoder.encode_messages(turns[:4]))) == rendered


def test_a_real_failed_allocation_becomes_out_of_memory_and_says_what_to_do(base: BaseModel, tmp_path: Path) -> None:
    import resource

    huge = job(base, tmp_path / "a", n=64, recipe=replace(RECIPE, batch_size=64))
    list(train(base, [job(base, tmp_path / "warm", n=2)], micro_batch=2, run_log=SilentLog()))
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    long = tuple(TokenSequence(s.ids * 40, s.is_response * 40) for s in huge.sequences)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (in_use + 64 * 2**20, hard))
    try:
        with pytest.raises(OutOfMemory, match=r"micro-batch 64, .*next attempt uses micro-batch 32") as caught:
            list(train(base, [replace(huge, sequences=long)], micro_batch=64, run_log=SilentLog()))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert caught.value.micro_batch == 64


def test_any_other_error_is_not_taken_for_lack_of_memory(base: BaseModel, tmp_path: Path) -> None:
    broken = replace(job(base, tmp_path / "a"), sequences=(TokenSequence((10**6, 1), (False, True)),))
    with pytest.raises(IndexError):
        list(train(base, [broken], micro_batch=1, run_log=SilentLog()))


def test_the_adapter_folder_names_its_base_and_holds_no_pickle(base: BaseModel, tmp_path: Path) -> None:
    (result,) = train(base, [job(base, tmp_path / "s")], micro_batch=3, run_log=SilentLog())
    config = json.loads((result.folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == base.name
    assert {file.suffix for file in result.folder.iterdir()} <= {".json", ".safetensors", ".md"}
