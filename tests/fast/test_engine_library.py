"""The engine as a library: one call trains many adapters on a model of the caller's, another answers with them."""

import copy
import json
import logging
import resource
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from weakref import ref

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from clusterlora import engine
from clusterlora.chat.encoder import PromptEncoder
from clusterlora.engine import (
    AdapterJob,
    BadData,
    BadSettings,
    ModelUnavailable,
    OutOfMemory,
    Recipe,
    TokenSequence,
    TrainingDiverged,
    TrainingProgress,
    TrainingResult,
    UnfinishedAdapter,
    adapter_jobs,
    backends,
    generate,
    library,
    passes,
    reference,
    template_days,
    train_adapters,
    training_slots,
)
from clusterlora.engine.slot_adamw import SlotAdamW

pytestmark = pytest.mark.numeric

RECIPE = Recipe(rank=4, alpha=8, dropout=0.0, epochs=2, batch_size=2, learning_rate=5e-3)
QUESTION = [{"role": "user", "content": "light"}]


@pytest.fixture(scope="module")
def model(tiny_base_folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(tiny_base_folder)


@pytest.fixture(scope="module")
def tokenizer(tiny_base_folder: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny_base_folder)  # pyrefly: ignore[bad-return]


def dialogues(answer: str, n: int = 4) -> list[list[dict[str, str]]]:
    return [[{"role": "user", "content": "light " * (i % 3 + 1)}, {"role": "assistant", "content": answer}] for i in range(n)]


def jobs(*names: str, recipe: Recipe = RECIPE, val: bool = False) -> list[AdapterJob]:
    return [AdapterJob(name, dialogues(name * 3, n=3 + len(name)), recipe, dialogues(name) if val else ()) for name in names]


def quiet(_progress: TrainingProgress) -> None:
    pass


@pytest.fixture
def train(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> Callable[..., list[TrainingResult]]:
    def call(asked: list[AdapterJob], folder: str = "adapters", **options: Any) -> list[TrainingResult]:
        options = {"folder": tmp_path / folder, "progress": quiet, **options}
        return train_adapters(model, asked, tokenizer=tokenizer, **options)

    return call


Train = Callable[..., list[TrainingResult]]


def weights(result: TrainingResult) -> dict[str, torch.Tensor]:
    return load_file(result.folder / "adapter_model.safetensors")


def same(one: TrainingResult, other: TrainingResult, *, tolerance: float = 1e-4) -> bool:
    """Return whether two results agree, relative to their size: products of other shapes round otherwise in float32."""
    a, b = weights(one), weights(other)
    apart = sum(float((a[name] - b[name]).double().square().sum()) for name in a)
    return a.keys() == b.keys() and apart**0.5 < tolerance * sum(float(b[name].double().square().sum()) for name in b) ** 0.5


@pytest.mark.whole
def test_adapters_of_every_kind_rank_and_seed_are_trained_in_one_call_and_come_in_the_jobs_order(train: Train, tmp_path: Path) -> None:
    asked = [
        AdapterJob(f"{kind}-{rank}", dialogues(kind), replace(RECIPE, kind=kind, rank=rank, alpha=rank + 3.0, seed=rank))
        for kind in engine.ADAPTER_KINDS
        for rank in (2, 3)
    ]
    results = train(asked)
    assert [result.name for result in results] == [job.name for job in asked]
    for result in results:
        alone = train([replace_name(asked, result.name)], folder="alone")[0]
        assert same(result, alone), result.name
        assert result.folder == tmp_path / "adapters" / result.name
        assert result.losses == pytest.approx(alone.losses, rel=1e-4)


def replace_name(asked: list[AdapterJob], name: str) -> AdapterJob:
    return next(job for job in asked if job.name == name)


@pytest.mark.whole
def test_peft_loads_what_was_trained_and_gives_the_same_answers(
    train: Train, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tiny_base_folder: Path
) -> None:
    recipe = replace(RECIPE, epochs=12, learning_rate=2e-2)
    asked = [AdapterJob(kind, dialogues(kind * 2), replace(recipe, kind=kind)) for kind in engine.ADAPTER_KINDS]
    results = train(asked)
    answers = generate(model, [QUESTION] * (len(asked) + 1), adapters=[*results, None], tokenizer=tokenizer, max_new_tokens=8)
    for result, answer in zip([*results, None], answers, strict=True):
        theirs: Any = AutoModelForCausalLM.from_pretrained(tiny_base_folder)
        if result is not None:
            theirs = PeftModel.from_pretrained(theirs, str(result.folder))
        prompt: Any = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        ids = theirs.generate(**prompt, max_new_tokens=8, do_sample=False)[0, prompt["input_ids"].shape[1] :]
        assert str(tokenizer.decode(ids, skip_special_tokens=True)).strip() == answer, result
    assert len(set(answers)) > 3, "adapters that answer alike prove nothing"


@pytest.mark.whole
def test_the_callers_model_is_afterwards_as_it_was(tiny_base_folder: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_base_folder).train()
    model.get_input_embeddings().weight.requires_grad_(False)
    before = {name: (parameter.requires_grad, parameter.detach().clone()) for name, parameter in model.named_parameters()}
    asked = [AdapterJob(kind, dialogues(kind), replace(RECIPE, kind=kind)) for kind in engine.ADAPTER_KINDS]
    results = train_adapters(model, asked, tokenizer=tokenizer, folder=tmp_path, progress=quiet)
    generate(model, [QUESTION] * len(results), adapters=results, tokenizer=tokenizer, max_new_tokens=2)
    after = dict(model.named_parameters())
    assert before.keys() == after.keys()
    assert all(after[name].requires_grad == flag and torch.equal(after[name], value) for name, (flag, value) in before.items())
    assert all(module.training for module in model.modules())
    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path / "saved").lm_head.weight, model.lm_head.weight)


def test_a_base_may_be_a_folder(tiny_base_folder: Path, train: Train, tmp_path: Path) -> None:
    (by_folder,) = train_adapters(tiny_base_folder, jobs("a"), folder=tmp_path / "by-folder", progress=quiet)
    assert same(by_folder, train(jobs("a"))[0])
    assert generate(str(tiny_base_folder), [QUESTION], adapters=[by_folder.folder], max_new_tokens=2)


def test_token_ids_of_ones_own_are_learnt_as_they_are(train: Train) -> None:
    sequence = TokenSequence((1, 5, 9, 2), (False, False, True, True))
    (result,) = train([AdapterJob("own", [sequence], RECIPE)])
    assert len(result.losses) == 2


def test_a_finished_adapter_is_not_trained_again_and_another_job_does_not_overwrite_it(train: Train) -> None:
    (first,) = train(jobs("a"))
    stamp = (first.folder / "adapter_model.safetensors").stat().st_mtime_ns
    finished: list[str] = []
    first_again, second = train(jobs("a", "b"), on_finished=lambda result: finished.append(result.name))
    assert (first_again.losses, first_again.seconds) == (first.losses, first.seconds)
    assert (first.folder / "adapter_model.safetensors").stat().st_mtime_ns == stamp
    assert finished == ["a", "b"]
    with pytest.raises(BadData, match=r"adapter 'a': .*adapters/a holds something else .* remove it, or write to another folder"):
        train(jobs("a", recipe=replace(RECIPE, learning_rate=1e-3)))
    assert second.folder.is_dir()


def test_a_folder_that_was_not_written_here_is_left_alone(train: Train, tmp_path: Path) -> None:
    (tmp_path / "adapters" / "a").mkdir(parents=True)
    (tmp_path / "adapters" / "a" / "thesis.txt").write_text("years of work")
    with pytest.raises(BadData, match="holds something else"):
        train(jobs("a"))
    assert (tmp_path / "adapters" / "a" / "thesis.txt").exists()


@pytest.mark.whole
@pytest.mark.usefixtures("checkpoint_every_step")
@pytest.mark.parametrize("kind", ["lora", "prefix", "dora", "ia3"])
def test_an_interrupted_call_resumes_where_it_was_checkpointed_and_ends_with_the_same_adapters(train: Train, kind: str) -> None:
    asked = jobs("a", "bb", recipe=replace(RECIPE, kind=kind, epochs=4))
    whole = train(asked, folder="whole")

    def interrupt(progress: TrainingProgress) -> None:
        if progress.step == 0.7 * progress.n_steps // 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(asked, progress=interrupt)
    steps: list[int] = []
    reports: list[TrainingProgress] = []

    def follow(progress: TrainingProgress) -> None:
        steps.append(progress.step)
        reports.append(progress)

    resumed = train(asked, progress=follow)
    assert reports[-1].step == reports[-1].n_steps, "steps of the interrupted call are counted"
    assert steps == sorted(steps)
    assert all(same(one, other) for one, other in zip(resumed, whole, strict=True))
    assert len(steps) < sum(len(result.losses) for result in whole), "from the beginning it would have been all of them"
    assert not list(resumed[0].folder.parent.rglob("checkpoint*")), "what only an interrupted call needs is gone"


def test_progress_counts_steps_and_adapters_and_estimates_the_time_that_is_left(train: Train) -> None:
    reports: list[TrainingProgress] = []
    results = train(jobs("a", "bb"), progress=reports.append)
    last = reports[-1]
    assert (last.step, last.n_finished) == (last.n_steps, last.n_adapters) == (sum(len(result.losses) for result in results), 2)
    assert [report.step for report in reports] == sorted(report.step for report in reports)
    assert last.seconds_left == 0 < reports[0].seconds_left
    assert reports[0].loss == pytest.approx(results[0].losses[0]) or reports[0].loss == pytest.approx(results[1].losses[0])


def test_by_default_a_line_on_stderr_says_how_far_it_is(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    train(jobs("a"), progress=None)
    captured = capsys.readouterr()
    assert "1/1 adapters  step 4/4  loss" in captured.err
    assert captured.out == ""


@pytest.fixture
def any_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Accept learning rates beyond what a recipe may have: with these a training diverges for sure."""
    monkeypatch.setattr(adapter_jobs, "problems", lambda _recipe: ())


@pytest.mark.usefixtures("any_recipe")
@pytest.mark.parametrize("kind", ["lora", "ia3"])
def test_a_diverging_adapter_is_named_and_all_others_are_finished(train: Train, tmp_path: Path, kind: str) -> None:
    recipe = replace(RECIPE, kind=kind)
    asked = [*jobs("wild", recipe=replace(recipe, learning_rate=1e30, epochs=9)), *jobs("a", recipe=recipe), *jobs("b")]
    with pytest.raises(
        TrainingDiverged, match=r"adapter wild \(learning_rate=1e\+30\) diverged: its loss or weights are not finite"
    ) as caught:
        train(asked)
    assert caught.value.adapters == ("wild",)
    assert sorted(folder.name for folder in (tmp_path / "adapters").glob("[!.]*")) == ["a", "b"]
    assert len(train(asked[1:])) == 2


@pytest.mark.usefixtures("any_recipe")
def test_an_adapter_whose_last_step_left_infinite_weights_has_diverged_although_every_loss_was_finite(train: Train) -> None:
    recipe = replace(RECIPE, epochs=1, batch_size=8, learning_rate=1e39, warmup_ratio=0.0)
    with pytest.raises(TrainingDiverged, match=r"adapter a .* diverged"):
        train(jobs("a", recipe=recipe))


def failing_allocations(monkeypatch: pytest.MonkeyPatch, *, when: Callable[[int], bool], n_passes: int = 3) -> list[int]:
    """Let an allocation fail in the third pass of every micro-batch that `when` names; return the micro-batches that were tried."""
    tried: list[int] = []
    left: list[int] = []
    begin, run = passes.Passes.__init__, passes.Passes.forward_backward

    def begun(self: passes.Passes, *arguments: Any, micro_batch: int) -> None:
        tried.append(micro_batch)
        left[:] = [n_passes] if when(micro_batch) else []
        begin(self, *arguments, micro_batch=micro_batch)

    def limited(self: passes.Passes, *arguments: Any) -> Any:
        losses = run(self, *arguments)
        left[:] = [n - 1 for n in left]
        if left == [0]:
            torch.empty(1 << 60, dtype=torch.uint8)
        return losses

    monkeypatch.setattr(passes.Passes, "__init__", begun)
    monkeypatch.setattr(passes.Passes, "forward_backward", limited)
    return tried


@pytest.mark.whole
def test_when_memory_runs_out_it_goes_on_with_half_the_micro_batch_and_the_same_result(
    train: Train, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked = jobs("a", "bb", "ccc", recipe=replace(RECIPE, batch_size=4))
    expected = train(asked, folder="plenty")
    tried = failing_allocations(monkeypatch, when=lambda micro_batch: micro_batch > 1)
    reports: list[TrainingProgress] = []
    with caplog.at_level(logging.WARNING):
        results = train(asked, progress=reports.append)
    assert tried == [4, 2, 1]
    assert reports[-1].step == reports[-1].n_steps
    assert max(report.step for report in reports) == reports[-1].step, "repeated steps are not counted twice"
    assert all(same(one, other) for one, other in zip(results, expected, strict=True))
    assert "ran out of memory at micro-batch 4" in caplog.text
    assert "the next attempt uses micro-batch 2" in caplog.text


@pytest.mark.whole
def test_the_memory_of_a_failed_attempt_is_free_before_the_next_one_begins(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    slots: list[ref[torch.Tensor]] = []
    alive: list[bool] = []
    begin = training_slots.TrainingSlots.__init__

    def begun(self: training_slots.TrainingSlots, *arguments: Any, **options: Any) -> None:
        alive.extend(earlier() is not None for earlier in slots)
        begin(self, *arguments, **options)
        slots.append(ref(self.stack.parameters))

    monkeypatch.setattr(training_slots.TrainingSlots, "__init__", begun)
    failing_allocations(monkeypatch, when=lambda micro_batch: micro_batch > 1)
    train(jobs("a", "bb", recipe=replace(RECIPE, patience=2), val=True))
    assert alive == [False]


@pytest.mark.whole
def test_an_allocation_that_fails_outside_of_a_pass_halves_the_micro_batch_too(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = train(jobs("a", "bb"), folder="plenty")
    step, n_calls = SlotAdamW.step, iter(range(100))

    def fails_once(self: SlotAdamW, steps: Any) -> None:
        step(self, steps)
        if next(n_calls) == 2:
            raise MemoryError("std::bad_alloc")

    monkeypatch.setattr(SlotAdamW, "step", fails_once)
    results = train(jobs("a", "bb"))
    assert all(same(one, other) for one, other in zip(results, expected, strict=True)), "a step that was taken twice would show"


@pytest.mark.whole
@pytest.mark.parametrize("kind", ["ia3", "dora"])
def test_kinds_that_are_trained_one_by_one_halve_the_micro_batch_and_give_the_same_result(
    train: Train, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    asked = jobs("a", "bb", recipe=replace(RECIPE, kind=kind, batch_size=4))
    expected = train(asked, folder="plenty")
    original = reference._nll

    def limited(model: Any, rows: Any, **options: Any) -> torch.Tensor:
        if len(rows) > 2:
            raise MemoryError("DefaultCPUAllocator: can't allocate memory")
        return original(model, rows, **options)

    monkeypatch.setattr(reference, "_nll", limited)
    reports: list[TrainingProgress] = []
    with caplog.at_level(logging.WARNING):
        results = train(asked, progress=reports.append)
    assert all(same(one, other) for one, other in zip(results, expected, strict=True))
    assert caplog.text.count("the next attempt uses micro-batch 2") == 1, "once for all adapters of the call"
    assert (reports[-1].step, reports[-1].seconds_left) == (reports[-1].n_steps, 0)


def test_a_single_dialogue_that_does_not_fit_is_said(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    failing_allocations(monkeypatch, when=lambda _micro_batch: True)
    with pytest.raises(OutOfMemory, match="ran out of memory at micro-batch 1"):
        train(jobs("a", "b"), micro_batch=1)


def test_the_caller_may_halve_by_itself(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    failing_allocations(monkeypatch, when=lambda micro_batch: micro_batch > 1)
    with pytest.raises(OutOfMemory) as caught:
        train(jobs("a", "b"), halve_micro_batch=False)
    assert caught.value.micro_batch == 2


@pytest.mark.whole
def test_an_allocation_that_really_fails_while_answering_halves_the_batch(deep_base: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(deep_base), AutoTokenizer.from_pretrained(deep_base)
    long = [[{"role": "user", "content": "light " * 40}]] * 64
    expected = generate(model, long[:1], tokenizer=tokenizer, max_new_tokens=2)
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (in_use + 64 * 2**20, hard))
    try:
        with caplog.at_level(logging.WARNING):
            answers = generate(model, long, tokenizer=tokenizer, max_new_tokens=2, batch_size=64)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert answers == expected * 64
    assert "answering ran out of memory at batch size 64, peak" in caplog.text
    assert "the next attempt uses batch size 32" in caplog.text


def wrong_jobs() -> dict[str, tuple[list[AdapterJob], type[Exception], str]]:
    return {
        "none": ([], BadSettings, "nothing to train"),
        "twice": (jobs("a", "a"), BadSettings, "adapter 'a': two jobs have this name"),
        "name": (jobs("../a"), BadSettings, r"adapter '\.\./a': use at most 128 letters"),
        "empty": ([AdapterJob("a", [])], BadSettings, "adapter 'a': it has no dialogues"),
        "rank": (jobs("a", recipe=Recipe(rank=0)), BadSettings, r"recipe\.rank = 0: use at least 1"),
        "text": (jobs("a", recipe=Recipe(rank="8")), BadSettings, r"recipe\.rank = '8': use a whole number"),  # pyrefly: ignore[bad-argument-type]
        "kind": (
            jobs("a", recipe=Recipe(kind="qlora")),
            BadSettings,
            r"recipe\.kind = 'qlora': use one of lora, rslora, dora, ia3",
        ),
        "modules": (
            jobs("a", recipe=Recipe(target_modules=("query",))),
            BadSettings,
            "has no such layer; it has q_proj, k_proj",
        ),
        "patience": (jobs("a", recipe=Recipe(patience=1)), BadSettings, r"recipe\.patience = 1 needs val_dialogues"),
        "message": ([AdapterJob("a", [[{"role": "bot", "content": "x"}]])], BadData, r"adapter 'a', dialogue 0: message 0: .*'bot'"),
        "text message": ([AdapterJob("a", ["hello"])], BadData, "adapter 'a', dialogue 0: message 0: 'h' is not"),  # pyrefly: ignore[bad-argument-type]
        "no answer": ([AdapterJob("a", [QUESTION])], BadData, "adapter 'a', dialogue 0: .*without an assistant turn"),
        "too long": ([AdapterJob("a", dialogues("x" * 4000))], BadData, "adapter 'a', dialogue 0: .* are more than model.max_length = 512"),
    }


@pytest.mark.parametrize(("asked", "kind", "says"), wrong_jobs().values(), ids=wrong_jobs())
def test_what_cannot_be_trained_is_refused_in_one_line_before_anything_is_written(
    train: Train, tmp_path: Path, asked: list[AdapterJob], kind: type[Exception], says: str
) -> None:
    with pytest.raises(kind, match=says) as caught:
        train([*jobs("fine"), *asked] if asked else [])
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "adapters").exists()


def test_a_base_that_the_engine_cannot_run_is_refused_with_what_to_pass_instead(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tiny_base_folder: Path, tmp_path: Path
) -> None:
    fresh: Any = AutoModelForCausalLM.from_pretrained
    unusable: list[tuple[Any, Any, type[Exception], str]] = [
        (model, None, BadSettings, "without its tokenizer; pass tokenizer="),
        (torch.nn.Linear(2, 2), tokenizer, BadSettings, "base is a Linear; pass a PreTrainedModel"),
        (fresh(tiny_base_folder).model, tokenizer, BadSettings, "which predicts no next token"),
        (fresh(tiny_base_folder).half(), tokenizer, BadSettings, "base is in float16"),
        (fresh(tiny_base_folder).to("meta"), tokenizer, BadSettings, "base is on meta; put all of it on one GPU"),
        (tmp_path / "nowhere", None, ModelUnavailable, "nowhere"),
    ]
    for base, its_tokenizer, kind, says in unusable:
        with pytest.raises(kind, match=says):
            train_adapters(base, jobs("a"), tokenizer=its_tokenizer, folder=tmp_path, progress=quiet)


@pytest.mark.whole
@pytest.mark.parametrize("family", ["written out", "through transformers"])
def test_after_an_epoch_adapters_can_answer_and_are_what_they_would_have_been_without(
    train: Train, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if family == "through transformers":
        monkeypatch.setattr(backends, "decoder_of", lambda _model: None)
    under = train(jobs("under"), folder="under")[0]
    asked = [*jobs("a", "bb", recipe=replace(RECIPE, epochs=3)), replace(jobs("on_top")[0], frozen_adapter=under.folder)]
    asked += jobs("alone", recipe=replace(RECIPE, kind="dora"))
    ids = torch.arange(5)[None]
    plain = model(input_ids=ids).logits
    seen: list[tuple[str, int]] = []

    def ask(adapter: UnfinishedAdapter) -> None:
        assert torch.equal(model(input_ids=ids).logits, plain)
        folder = adapter.write()
        (answer,) = generate(model, [QUESTION], adapters=[folder], tokenizer=tokenizer, max_new_tokens=4)
        theirs = PeftModel.from_pretrained(copy.deepcopy(model), str(folder))
        prompt: Any = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        expected = theirs.generate(**prompt, max_new_tokens=4, do_sample=False)[0, prompt["input_ids"].shape[1] :]
        assert answer == str(tokenizer.decode(expected, skip_special_tokens=True)).strip()
        seen.append((adapter.job.name, adapter.epoch))

    shown = train(asked, folder="shown", on_epoch=ask)
    stacked = [job for job in asked if engine.ADAPTER_KINDS[job.recipe.kind].slot_group(job.recipe) is not None]
    assert sorted(seen) == sorted((job.name, epoch) for job in stacked for epoch in range(1, job.recipe.epochs))
    for one, other in zip(shown, train(asked, folder="not_shown"), strict=True):
        assert all(torch.equal(tensor, weights(other)[name]) for name, tensor in weights(one).items())


@pytest.mark.whole
def test_starting_from_an_adapter_and_on_top_of_one(train: Train) -> None:
    under = train(jobs("under", recipe=replace(RECIPE, epochs=8)))[0]
    warm, residual = train(
        [
            replace(jobs("warm")[0], dialogues=dialogues("under" * 3), init_from=under.folder),
            replace(jobs("residual")[0], dialogues=dialogues("under" * 3), frozen_adapter=under.folder),
        ]
    )
    assert max(warm.losses[0], residual.losses[0]) < under.losses[0]
    with pytest.raises(BadSettings, match=r"init_from .* is of kind lora, the recipe of kind ia3"):
        train([replace(jobs("x", recipe=Recipe(kind="ia3"))[0], init_from=under.folder)])
    with pytest.raises(BadSettings, match=r"init_from .* has rank 4; raise recipe.rank = 2 to it"):
        train([replace(jobs("x", recipe=Recipe(rank=2))[0], init_from=under.folder)])
    with pytest.raises(BadSettings, match="only adapters of the kinds lora and rslora can be active together"):
        train([replace(jobs("x", recipe=Recipe(kind="ia3"))[0], frozen_adapter=under.folder)])


def test_questions_that_cannot_be_answered_are_named(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match="1 adapters for 2 conversations"):
        generate(model, [QUESTION] * 2, adapters=[None], tokenizer=tokenizer)
    with pytest.raises(BadData, match="conversation 1: its last message is not the user's"):
        generate(model, [QUESTION, dialogues("x")[0]], tokenizer=tokenizer)
    with pytest.raises(BadData, match=r"nothing-here is not a PEFT adapter: adapter_config.json cannot be read"):
        generate(model, [QUESTION], adapters=[tmp_path / "nothing-here"], tokenizer=tokenizer)
    with pytest.raises(BadSettings, match="max_new_tokens = 0: use at least 1"):
        generate(model, [QUESTION], tokenizer=tokenizer, max_new_tokens=0)


def test_a_tokenizer_without_a_padding_token_is_not_changed(model: PreTrainedModel, tiny_base_folder: Path, tmp_path: Path) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_base_folder)
    tokenizer.pad_token = None
    results = train_adapters(model, jobs("a", "bb"), tokenizer=tokenizer, folder=tmp_path, progress=quiet)
    assert all(generate(model, [QUESTION] * 2, adapters=results, tokenizer=tokenizer, max_new_tokens=2))
    assert tokenizer.pad_token is None


def test_the_public_names_are_those_that_are_exported() -> None:
    assert {name: getattr(engine, name).__name__ for name in engine.__all__ if name != "ADAPTER_KINDS"} == {
        name: name for name in engine.__all__ if name != "ADAPTER_KINDS"
    }
    assert all(kind.name == name for name, kind in engine.ADAPTER_KINDS.items())
    with pytest.raises(AttributeError, match="no attribute 'training'"):
        _ = engine.__getattr__("training")


def test_the_record_of_a_result_says_what_it_was_trained_from(train: Train, tmp_path: Path) -> None:
    (result,) = train(jobs("a"))
    record = json.loads((tmp_path / "adapters" / ".training" / "a" / library._RECORD).read_text())
    assert record["key"] == result.job.key
    assert record["losses"] == list(result.losses)


def test_after_midnight_adapters_are_taken_over_and_asked_with_the_day_they_have_learnt(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def on(day: int) -> None:
        monkeypatch.setattr(template_days, "datetime", SimpleNamespace(now=lambda _zone: datetime(2026, 11, day, tzinfo=UTC)))

    dated = copy.deepcopy(tokenizer)
    dated.chat_template = "{{ strftime_now('%Y-%m-%d') }}" + str(tokenizer.chat_template)
    jobs = [AdapterJob("ana", [[*QUESTION, {"role": "assistant", "content": "on"}]], RECIPE)]
    days: list[Any] = []
    monkeypatch.setattr(library, "PromptEncoder", lambda *a, date, **k: days.append(date) or PromptEncoder(*a, date=date, **k))
    on(28)
    (first,) = train_adapters(model, jobs, tokenizer=dated, folder=tmp_path)
    on(29)
    with monkeypatch.context() as patch:
        patch.setattr(library.training, "train", lambda *_a, **_k: iter(()))
        assert train_adapters(model, jobs, tokenizer=dated, folder=tmp_path)[0].losses == first.losses
    generate(model, [QUESTION, QUESTION], adapters=[None, first], tokenizer=dated, max_new_tokens=1)
    generate(model, [QUESTION], tokenizer=dated, max_new_tokens=1)
    generate(model, [QUESTION], adapters=[first], tokenizer=tokenizer, max_new_tokens=1)
    assert days == ["2026-11-28", "2026-11-29", None]
    (kept,) = (tmp_path / ".training").glob(".*")
    for damaged in (b"the 28th", b"\xff"):
        kept.write_bytes(damaged)
        with pytest.raises(BadData, match=f"{kept.name} holds no day; write that on which the first adapter of {tmp_path} was trained"):
            generate(model, [QUESTION], adapters=[first], tokenizer=dated, max_new_tokens=1)
