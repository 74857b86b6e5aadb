"""The engine trains K adapters together, and each equals one trained alone with plain PEFT."""

import gc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any
from weakref import ref

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import Qwen2Config, Qwen2ForCausalLM

from clusterlora.chat.encoder import PromptEncoder, TokenSequence
from clusterlora.engine import backends, checkpoint, memory, passes, reference, training_loop, training_slots
from clusterlora.engine.base import BaseModel
from clusterlora.engine.decoder_backend import DecoderBackend
from clusterlora.engine.families import decoder_of
from clusterlora.engine.job import TrainingJob, TrainingResult
from clusterlora.engine.ragged import RaggedRows
from clusterlora.errors import BadSettings, TrainingDiverged
from clusterlora.models.base import load_base
from clusterlora.ports.run_log import SilentLog
from clusterlora.recipe import Recipe
from clusterlora.values import Turn

pytestmark = pytest.mark.numeric

RECIPE = Recipe(rank=4, alpha=8, dropout=0.0, epochs=2, batch_size=2, learning_rate=5e-3)


@pytest.fixture(scope="module")
def base(tiny_base_folder: Path) -> BaseModel:
    return load_base(str(tiny_base_folder))


def sequences(base: BaseModel, n: int, *, first: int) -> tuple[TokenSequence, ...]:
    encoder = PromptEncoder(base.tokenizer, max_length=256)
    return tuple(
        encoder.encode_dialogues([(Turn("user", "light " * ((i + first) % 4 + 1)), Turn("assistant", f"Set to {i * first}."))])[0]
        for i in range(n)
    )


def job(
    base: BaseModel,
    folder: Path,
    name: str,
    *,
    n: int = 5,
    recipe: Recipe = RECIPE,
    init_from: Path | None = None,
    frozen_adapter: Path | None = None,
) -> TrainingJob:
    return TrainingJob(name, name, recipe, sequences(base, n, first=len(name) + n), folder / name, init_from, frozen_adapter)


def together(base: BaseModel, jobs: list[TrainingJob], *, micro_batch: int = 2) -> dict[str, TrainingResult]:
    return {r.job.name: r for r in training_loop.train(base, jobs, micro_batch=micro_batch, run_log=SilentLog())}


def alone(base: BaseModel, jobs: list[TrainingJob]) -> dict[str, TrainingResult]:
    return {r.job.name: r for r in reference.train(base, jobs, micro_batch=64, run_log=SilentLog())}


def difference(one: TrainingResult, other: TrainingResult) -> float:
    """Return how far two results are apart, relative to how far training moved B (which starts at zero) in the second."""
    a, b = (load_file(r.folder / "adapter_model.safetensors") for r in (one, other))
    assert a.keys() == b.keys()
    apart = sum(float((a[n] - b[n]).double().pow(2).sum()) for n in a)
    moved = sum(float(b[n].double().pow(2).sum()) for n in b if "lora_B" in n)
    return (apart / moved) ** 0.5


def unequal_jobs(base: BaseModel, folder: Path) -> list[TrainingJob]:
    return [
        job(base, folder, "a", n=5),
        job(base, folder, "bb", n=3, recipe=replace(RECIPE, rank=2, learning_rate=1e-2)),
        job(base, folder, "ccc", n=8, recipe=replace(RECIPE, rank=6, alpha=3, epochs=1, batch_size=4, schedule="cosine")),
        job(base, folder, "dddd", n=1, recipe=replace(RECIPE, weight_decay=0.1, max_grad_norm=0.05, seed=3)),
    ]


@pytest.mark.whole
def test_adapters_trained_together_equal_adapters_trained_alone_in_float64(base64: BaseModel, tmp_path: Path) -> None:
    ours = together(base64, unequal_jobs(base64, tmp_path / "ours"))
    theirs = alone(base64, unequal_jobs(base64, tmp_path / "theirs"))
    for name, result in ours.items():
        assert difference(result, theirs[name]) < 1e-9, name
        assert result.losses == pytest.approx(theirs[name].losses, rel=1e-9)


@pytest.mark.whole
@pytest.mark.usefixtures("as_on_a_gpu")
def test_adapters_trained_together_equal_adapters_trained_alone_in_gpu_batch_layout(base64: BaseModel, tmp_path: Path) -> None:
    ours = together(base64, unequal_jobs(base64, tmp_path / "ours"))
    theirs = alone(base64, unequal_jobs(base64, tmp_path / "theirs"))
    assert all(difference(result, theirs[name]) < 1e-9 for name, result in ours.items())


def test_a_backend_is_freed_when_its_training_ends(base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backends_created: list[ref[DecoderBackend]] = []
    original = DecoderBackend.__init__

    def remember(self: DecoderBackend, *arguments: Any, **named: Any) -> None:
        original(self, *arguments, **named)
        backends_created.append(ref(self))

    monkeypatch.setattr(DecoderBackend, "__init__", remember)
    gc.disable()
    try:
        together(base, [job(base, tmp_path, "a", n=4)])
        # A retry in the same process needs the memory immediately, above all that of CUDA graphs.
        assert [backend() for backend in backends_created] == [None]
    finally:
        gc.enable()


@pytest.mark.whole
def test_adapters_trained_together_equal_adapters_trained_alone_within_rounding_in_float32(base: BaseModel, tmp_path: Path) -> None:
    ours = together(base, unequal_jobs(base, tmp_path / "ours"))
    theirs = alone(base, unequal_jobs(base, tmp_path / "theirs"))
    assert all(difference(result, theirs[name]) < 1e-3 for name, result in ours.items())


@pytest.mark.whole
def test_warm_starts_and_residuals_equal_the_reference_too(base64: BaseModel, tmp_path: Path) -> None:
    (first,) = alone(base64, [job(base64, tmp_path, "first", n=6)]).values()

    def jobs(folder: Path) -> list[TrainingJob]:
        return [
            job(base64, folder, "warm", init_from=first.folder),
            job(base64, folder, "residual", frozen_adapter=first.folder, recipe=replace(RECIPE, rank=2)),
            job(base64, folder, "plain"),
        ]

    ours, theirs = together(base64, jobs(tmp_path / "ours")), alone(base64, jobs(tmp_path / "theirs"))
    assert all(difference(result, theirs[name]) < 1e-9 for name, result in ours.items())


@pytest.mark.parametrize("rank", [1, 2])
def test_tensors_read_from_a_slot_are_copies(base64: BaseModel, rank: int) -> None:
    lora, _ = backends.lora_backend(base64, replace(RECIPE, rank=rank), n_slots=1, rank=rank, probe=[3, 4])
    lora.parameters.fill_(2.0)
    tensors = lora.read(0, lora.parameters, rank=rank)
    lora.parameters.zero_()
    assert all(bool((tensor == 2.0).all()) for tensor in tensors.values())


@pytest.mark.whole
def test_freed_slots_are_refilled_until_the_queue_is_empty(base64: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(training_slots.MAX_SLOTS, "cpu", 2)
    ours = together(base64, unequal_jobs(base64, tmp_path / "ours"))
    theirs = alone(base64, unequal_jobs(base64, tmp_path / "theirs"))
    assert ours.keys() == theirs.keys()
    assert all(difference(result, theirs[name]) < 1e-9 for name, result in ours.items())


@pytest.mark.whole
def test_the_size_of_the_chunks_changes_nothing(base64: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = together(base64, unequal_jobs(base64, tmp_path / "whole"))
    halved = together(base64, unequal_jobs(base64, tmp_path / "halved"), micro_batch=1)
    monkeypatch.setitem(memory.CHUNK_BYTES, "cpu", 1)
    row_by_row = together(base64, unequal_jobs(base64, tmp_path / "rows"))
    for name, result in whole.items():
        assert difference(halved[name], result) < 1e-9
        assert difference(row_by_row[name], result) < 1e-9


@pytest.mark.whole
def test_a_chunk_is_no_larger_than_the_free_memory_allows(base64: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    widths: list[int] = []
    original = RaggedRows.of
    monkeypatch.setattr(RaggedRows, "of", lambda sequences: widths.append(len(sequences)) or original(sequences))
    together(base64, unequal_jobs(base64, tmp_path / "plenty"))
    most = max(widths)
    widths.clear()
    monkeypatch.setattr(passes, "free_memory_bytes", lambda _device: 1 << 16)
    together(base64, unequal_jobs(base64, tmp_path / "little"))
    assert max(widths) == 1 < most


def test_activation_bytes_per_token_are_those_of_the_layers_and_fewer_with_checkpointing(base: BaseModel) -> None:
    ids = torch.arange(3, 43)
    n_bytes = {
        checkpointing: backends.lora_backend(base, RECIPE, n_slots=1, rank=4, probe=(3, 4), checkpointing=checkpointing)[1].bytes_per_token(
            ids
        )
        for checkpointing in (False, True)
    }
    config = base.model.config
    widest = 4 * (2 * config.intermediate_size + config.hidden_size)
    assert config.num_hidden_layers * widest < n_bytes[False] < 40 * config.num_hidden_layers * widest
    assert n_bytes[True] < n_bytes[False]


def test_the_gathered_factors_of_a_row_count_among_the_activation_bytes_per_token(base: BaseModel) -> None:
    ids = torch.arange(3, 43)
    of_rank = [backends.lora_backend(base, RECIPE, n_slots=1, rank=rank, probe=(3, 4))[1].bytes_per_token(ids) for rank in (1, 33)]
    config = base.model.config
    assert of_rank[1] - of_rank[0] > config.num_hidden_layers * 32 * 4 * (config.hidden_size + config.intermediate_size) / len(ids)


@pytest.mark.whole
def test_dropout_depends_on_the_adapter_and_not_on_the_rest_of_the_batch(base64: BaseModel, tmp_path: Path) -> None:
    recipe = replace(RECIPE, dropout=0.3)
    by_itself = together(base64, [job(base64, tmp_path / "solo", "a", recipe=recipe)])["a"]
    among_others = together(base64, [*unequal_jobs(base64, tmp_path / "more")[1:], job(base64, tmp_path / "more", "a", recipe=recipe)])["a"]
    without = together(base64, [job(base64, tmp_path / "without", "a")])["a"]
    assert difference(among_others, by_itself) < 1e-9
    assert difference(without, by_itself) > 1e-3


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_a_diverging_adapter_leaves_its_neighbours_untouched_and_is_named(base64: BaseModel, tmp_path: Path, dropout: float) -> None:
    recipe = replace(RECIPE, dropout=dropout)
    expected = together(base64, [job(base64, tmp_path / "solo", "a", recipe=recipe)])["a"]
    wild = job(base64, tmp_path, "wild", recipe=replace(recipe, learning_rate=1e200, epochs=9))
    results: dict[str, TrainingResult] = {}

    def collect(finished: Iterator[TrainingResult]) -> None:
        for result in finished:
            results[result.job.name] = result

    with pytest.raises(TrainingDiverged, match=r"wild \(learning_rate=1e\+200\)"):
        collect(training_loop.train(base64, [wild, job(base64, tmp_path, "a", recipe=recipe)], micro_batch=2, run_log=SilentLog()))
    assert results.keys() == {"a"}
    assert difference(results["a"], expected) < 1e-9


@pytest.mark.whole
@pytest.mark.usefixtures("checkpoint_every_step")
@pytest.mark.parametrize("engine", [training_loop, reference])
def test_a_killed_group_resumes_every_adapter_after_its_last_checkpoint(base64: BaseModel, tmp_path: Path, engine: ModuleType) -> None:
    expected = together(base64, unequal_jobs(base64, tmp_path / "whole"))

    class DiesAfter(SilentLog):
        left = 9

        def advance(self, units: int = 1, **_facts: float) -> None:
            self.left -= units
            if self.left < 0:
                raise KeyboardInterrupt

    jobs = unequal_jobs(base64, tmp_path / "killed")
    with pytest.raises(KeyboardInterrupt):
        list(training_loop.train(base64, jobs, micro_batch=2, run_log=DiesAfter()))
    left = [(state, j) for j in jobs if (state := checkpoint.read(j)) is not None]
    within_epochs = {bool(len(state.losses) % j.steps_per_epoch) for state, j in left}
    assert within_epochs == {False, True}, "one within its epoch and one at the end of it"
    resumed = {r.job.name: r for r in engine.train(base64, jobs, micro_batch=2, run_log=SilentLog())}
    assert all(result.losses == pytest.approx(expected[name].losses, rel=1e-9) for name, result in resumed.items())
    assert all(difference(result, expected[name]) < 1e-9 for name, result in resumed.items())


@pytest.mark.usefixtures("checkpoint_every_step")
@pytest.mark.parametrize("engine", [training_loop, reference])
def test_an_adapter_that_has_finished_writes_no_checkpoint(base64: BaseModel, tmp_path: Path, engine: ModuleType) -> None:
    jobs = unequal_jobs(base64, tmp_path)
    assert len(list(engine.train(base64, jobs, micro_batch=2, run_log=SilentLog()))) == len(jobs)
    left = [(state, j) for j in jobs if (state := checkpoint.read(j)) is not None]
    assert left
    assert all(len(state.losses) < j.total_steps for state, j in left)


def test_checkpoints_of_adapters_whose_epochs_end_together_wait_until_their_share_of_the_time_allows_them(
    base64: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "CHECKPOINT_SECONDS", -1.0)
    monkeypatch.setattr(training_slots, "_WRITING_SHARE", 1e-9)
    jobs = [job(base64, tmp_path, name, n=2) for name in "abc"]
    together(base64, jobs)
    assert [j.name for j in jobs if checkpoint.read(j) is not None] == ["a"]


@pytest.mark.whole
@pytest.mark.usefixtures("checkpoint_every_step")
def test_a_checkpoint_of_one_engine_is_continued_by_the_other(base64: BaseModel, tmp_path: Path) -> None:
    class DiesAfterTheFirstEpoch(SilentLog):
        left = 3

        def advance(self, units: int = 1, **_facts: float) -> None:
            if not self.left:
                raise KeyboardInterrupt
            self.left -= units

    half = job(base64, tmp_path / "a", "a")
    with pytest.raises(KeyboardInterrupt):
        list(reference.train(base64, [half], micro_batch=64, run_log=DiesAfterTheFirstEpoch()))
    state = checkpoint.read(half)
    assert state is not None
    assert len(state.losses) == half.steps_per_epoch
    ours = together(base64, [half])["a"]
    theirs = alone(base64, [job(base64, tmp_path / "b", "a")])["a"]
    assert ours.losses == pytest.approx(theirs.losses, rel=1e-9)
    assert difference(ours, theirs) < 1e-9


def test_training_restores_the_base_model(base64: BaseModel, tmp_path: Path) -> None:
    ids = torch.tensor([[1, 5, 9, 2]])
    before = base64.model(input_ids=ids).logits
    together(base64, unequal_jobs(base64, tmp_path))
    assert torch.equal(base64.model(input_ids=ids).logits, before)


@pytest.mark.whole
def test_recomputing_activations_in_the_backward_pass_changes_nothing(tiny_base_folder: Path, tmp_path: Path) -> None:
    base = load_base(str(tiny_base_folder))
    base.model.double()
    kept = together(base, unequal_jobs(base, tmp_path / "kept"))
    again = {
        r.job.name: r
        for r in training_loop.train(base, unequal_jobs(base, tmp_path / "again"), micro_batch=2, run_log=SilentLog(), checkpointing=True)
    }
    assert all(difference(again[name], result) < 1e-9 for name, result in kept.items())


def test_checkpoints_of_a_base_that_is_not_written_out_are_refused(
    base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "decoder_of", lambda _model: None)
    with pytest.raises(BadSettings, match=r"runtime.gradient_checkpointing.* needs adapters inside the blocks of one of LlamaForCausalLM,"):
        list(training_loop.train(base, [job(base, tmp_path, "a")], micro_batch=2, run_log=SilentLog(), checkpointing=True))


def test_biases_and_adapters_on_some_layers_of_a_fused_linear_equal_the_reference(tmp_path: Path, tiny_base_folder: Path) -> None:
    """Qwen2 has biases on q, k and v; adapters on q, v and up leave other layers of their fused linears unadapted."""
    ours, theirs = (qwen_like(tiny_base_folder) for _ in range(2))
    recipe = replace(RECIPE, target_modules=("q_proj", "v_proj", "up_proj"))
    result = together(ours, [job(ours, tmp_path / "ours", "a", recipe=recipe)])["a"]
    expected = alone(theirs, [job(theirs, tmp_path / "theirs", "a", recipe=recipe)])["a"]
    assert decoder_of(ours.model) is not None
    assert difference(result, expected) < 1e-3


def qwen_like(tiny_base_folder: Path) -> BaseModel:
    plain = load_base(str(tiny_base_folder))
    config = Qwen2Config(
        vocab_size=plain.model.config.vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    config.name_or_path = plain.name
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Qwen2ForCausalLM(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter.data, std=0.2)
    return replace(plain, model=model.eval().requires_grad_(False))


def test_a_layer_that_does_not_exist_is_refused_with_the_setting_to_change(base: BaseModel, tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match=r"set recipe.target_modules"):
        together(base, [job(base, tmp_path, "a", recipe=replace(RECIPE, target_modules=("c_attn",)))])


groups = st.lists(
    st.tuples(
        st.integers(1, 6),
        st.sampled_from([1, 2, 5]),
        st.sampled_from([1, 2, 3]),
        st.sampled_from([1e-3, 1e-2]),
        st.sampled_from([("q_proj", "down_proj")]),
    ),
    min_size=1,
    max_size=4,
)


@pytest.mark.whole
@settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(groups)
def test_any_group_equals_its_adapters_trained_alone(
    base64: BaseModel, tmp_path_factory: pytest.TempPathFactory, group: list[tuple[int, int, int, float, tuple[str, ...]]]
) -> None:
    def jobs(folder: Path) -> list[TrainingJob]:
        return [
            job(
                base64,
                folder,
                f"adapter-{number}",
                n=n,
                recipe=replace(RECIPE, rank=rank, batch_size=batch, learning_rate=rate, target_modules=targets, epochs=1),
            )
            for number, (n, rank, batch, rate, targets) in enumerate(group)
        ]

    ours, theirs = together(base64, jobs(tmp_path_factory.mktemp("o"))), alone(base64, jobs(tmp_path_factory.mktemp("t")))
    assert all(difference(result, theirs[name]) < 1e-9 for name, result in ours.items())
