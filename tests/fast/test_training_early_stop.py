"""An adapter with patience stops when its val loss no longer falls and keeps its best epoch, in both engines alike."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from clusterlora.adapters.cache_key import cache_keys
from clusterlora.engine import checkpoint, training_loop
from clusterlora.engine.base import BaseModel
from clusterlora.engine.job import TrainingJob, TrainingResult, out_of_patience
from clusterlora.ports.run_log import SilentLog
from clusterlora.settings import PreparedModel
from clusterlora.values import AdapterSpec, Dataset, Dialogue, Persona, Turn
from tests.fast.test_training_engine import RECIPE, alone, difference, job, sequences, together

pytestmark = pytest.mark.numeric

Engine = Callable[[BaseModel, list[TrainingJob]], dict[str, TrainingResult]]
EPOCHS = 6
HASTY = replace(RECIPE, patience=1, epochs=EPOCHS, learning_rate=3e-2, schedule="constant")
"""A rate at which a few dialogues are soon memorised, so that others become harder to predict."""


def jobs(base: BaseModel, folder: Path) -> list[TrainingJob]:
    """One that overfits, one that waits longer for its best epoch, one that learns what is asked, and one that does not look."""
    val = sequences(base, 3, first=11)
    hasty, patient, steady = (job(base, folder, name, n=3) for name in ("hasty", "patient", "steady"))
    return [
        with_recipe(hasty, val=val, patience=1),
        with_recipe(patient, val=val, patience=3),
        with_recipe(steady, val=steady.sequences, patience=1, learning_rate=1e-3),
        with_recipe(job(base, folder, "careless", n=3), val=(), patience=None),
    ]


def with_recipe(old: TrainingJob, *, val: tuple[Any, ...], **more: Any) -> TrainingJob:
    return replace(old, recipe=replace(HASTY, **more), val=val)


@pytest.mark.whole
def test_both_engines_stop_after_the_same_epoch_with_the_same_weights(base64: BaseModel, tmp_path: Path) -> None:
    ours, theirs = together(base64, jobs(base64, tmp_path / "ours")), alone(base64, jobs(base64, tmp_path / "theirs"))
    for name, result in ours.items():
        assert result.losses == pytest.approx(theirs[name].losses, rel=1e-9), name
        assert result.val_losses == pytest.approx(theirs[name].val_losses, rel=1e-9), name
        assert difference(result, theirs[name]) < 1e-9, name
    n_epochs = {name: len(result.losses) // 2 for name, result in ours.items()}
    assert n_epochs["hasty"] < EPOCHS, "nothing stopped early, so this shows nothing"
    assert n_epochs["hasty"] <= n_epochs["patient"]
    assert n_epochs["steady"] == n_epochs["careless"] == EPOCHS
    assert ours["careless"].val_losses == ()


@pytest.mark.whole
def test_the_best_epoch_is_kept_and_all_trained_tokens_are_counted(base64: BaseModel, tmp_path: Path) -> None:
    hasty = together(base64, jobs(base64, tmp_path / "a"))["hasty"]
    best = hasty.val_losses.index(min(hasty.val_losses)) + 1
    assert best == len(hasty.val_losses) - 1
    whole = replace(hasty.job, scratch=tmp_path / "b", val=(), recipe=replace(HASTY, patience=None, epochs=best))
    (until_then,) = together(base64, [whole]).values()
    assert difference(hasty, until_then) < 1e-9
    assert hasty.train_tokens == until_then.train_tokens // best * len(hasty.val_losses)


@pytest.mark.whole
@pytest.mark.usefixtures("checkpoint_every_step")
@pytest.mark.parametrize("resume", [together, alone])
def test_a_killed_training_remembers_its_best_epoch(
    base64: BaseModel,
    tmp_path: Path,
    resume: Engine,
) -> None:
    expected = together(base64, jobs(base64, tmp_path / "whole"))["patient"]
    patient = next(job for job in jobs(base64, tmp_path / "killed") if job.name == "patient")
    steps = 2 * (expected.val_losses.index(min(expected.val_losses)) + 2) + 1

    class DiesAfter(SilentLog):
        left = steps

        def advance(self, units: int = 1, **_facts: float) -> None:
            self.left -= units
            if self.left < 0:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(training_loop.train(base64, [patient], micro_batch=2, run_log=DiesAfter()))
    state = checkpoint.read(patient)
    assert state is not None
    assert state.val_losses[-1] > min(state.val_losses), "killed before the best epoch was past"
    resumed = resume(base64, [patient])["patient"]
    assert resumed.val_losses == pytest.approx(expected.val_losses, rel=1e-9)
    assert difference(resumed, expected) < 1e-9


def test_patience_counts_epochs_since_the_lowest_loss() -> None:
    assert not out_of_patience(HASTY, [3.0, 2.0])
    assert out_of_patience(HASTY, [3.0, 2.0, 2.0])
    assert not out_of_patience(replace(HASTY, patience=2), [3.0, 2.0, 2.5])
    assert not out_of_patience(replace(HASTY, patience=None), [1.0, 2.0, 3.0])


def test_val_dialogues_are_in_the_cache_key_of_adapters_with_early_stopping_only() -> None:
    def dataset(val: str) -> Dataset:
        dialogues = [Dialogue(s, (Turn("user", "on"), Turn("assistant", text)), split=s) for s, text in (("train", "On."), ("val", val))]
        return Dataset((Persona("ann", None, tuple(dialogues)),))

    def key(val: str, patience: int | None) -> str:
        spec = AdapterSpec(name="a", persona_ids=("ann",), recipe=replace(RECIPE, patience=patience))
        return cache_keys([spec], dataset(val), base_revision="r", model=PreparedModel())["a"]

    assert key("On!", None) == key("It is on.", None)
    assert key("On!", 1) != key("It is on.", 1)


def test_patience_without_val_dialogues_is_refused(base64: BaseModel, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"patience=1 needs val dialogues, but hasty has none"):
        with_recipe(job(base64, tmp_path, "hasty"), val=())
