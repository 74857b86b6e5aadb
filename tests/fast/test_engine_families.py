"""Every family of base models, written out and through transformers, trains and answers as plain PEFT does."""

import gc
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from weakref import ref

import pytest
import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file
from torch.nn import functional

from clusterlora.engine import backends, inference_backends, reference, training_loop
from clusterlora.engine.base import BaseModel, frozen_base
from clusterlora.engine.families import FAMILIES, decoder_of
from clusterlora.engine.generation import Question
from clusterlora.engine.kinds import read_weights
from clusterlora.engine.training import train as train_any
from clusterlora.errors import ModelUnavailable
from clusterlora.models.checks import refuse_bidirectional, refuse_what_cannot_be_computed
from clusterlora.ports.run_log import SilentLog
from tests.fixtures.families import TINY, WIDTH, Tiny, difference, jobs, model_of, sequences

pytestmark = pytest.mark.numeric

WRITTEN_OUT = [name for name in TINY if name != "gpt_neox"]
PASSES = [*((name, True) for name in WRITTEN_OUT), *((name, False) for name in ("phi3", "gemma2", "gemma3", "gpt2", "gpt_neox", "mistral"))]


def through_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (backends, inference_backends):
        monkeypatch.setattr(module, "decoder_of", lambda _model: None)


@pytest.mark.whole
@pytest.mark.parametrize(("name", "written_out"), PASSES)
def test_adapters_trained_together_equal_those_of_plain_peft(
    name: str, written_out: bool, base_of: Callable[[str], BaseModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = base_of(name), base_of(name)
    assert (decoder_of(ours.model) is not None) == (name in WRITTEN_OUT)
    if not written_out:
        through_transformers(monkeypatch)
    results = {r.job.key: r for r in training_loop.train(ours, jobs(name, tmp_path / "ours"), micro_batch=2, run_log=SilentLog())}
    expected = {r.job.key: r for r in reference.train(theirs, jobs(name, tmp_path / "theirs"), micro_batch=64, run_log=SilentLog())}
    assert max(difference(results[key], expected[key]) for key in expected) < 1e-9
    # PEFT's configuration, fan_in_fan_out of a Conv1D included, is what PEFT itself would write.
    configs = [(result["0"].folder / "adapter_config.json").read_text() for result in (results, expected)]
    assert '"fan_in_fan_out": true' in configs[0] if name == "gpt2" else '"fan_in_fan_out": false' in configs[0]
    assert ('"fan_in_fan_out": true' in configs[0]) == ('"fan_in_fan_out": true' in configs[1])


def greedy(model: Any, prompt: tuple[int, ...], n: int) -> tuple[int, ...]:
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(n):
            ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return tuple(ids[len(prompt) :])


@pytest.mark.whole
@pytest.mark.parametrize(("name", "written_out"), PASSES)
def test_answers_of_many_adapters_in_one_batch_are_those_of_peft_token_for_token(
    name: str, written_out: bool, base_of: Callable[[str], BaseModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = base_of(name), base_of(name)
    if not written_out:
        through_transformers(monkeypatch)
    trained = list(reference.train(base_of(name), jobs(name, tmp_path), micro_batch=64, run_log=SilentLog()))
    folders = [result.folder for result in sorted(trained, key=lambda result: result.job.key)]
    # Shared beginnings, so that prefixes are computed once; longer than every window.
    start = sequences(9)[0].ids * 3
    questions = [Question(start[: 70 + 5 * n] + sequences(n)[1].ids, slot, start[:3]) for slot in (1, 2, 0) for n in range(2)]
    backend = inference_backends.inference_backend(ours, [read_weights(folder) for folder in folders])
    replies = {reply.number: reply for reply in backend.reply(questions, max_new_tokens=8, batch_size=8)}
    backend.close()
    for slot in (0, 1, 2):
        model = PeftModel.from_pretrained(base_of(name).model, str(folders[slot - 1])).eval() if slot else theirs.model
        for number in (number for number, question in enumerate(questions) if question.slot == slot):
            ids = questions[number].prompt + questions[number].reference
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
            targets = torch.tensor(ids[-3:])
            assert replies[number].nll == pytest.approx(float(functional.cross_entropy(logits[-4:-1], targets)), rel=1e-5)
            answer = greedy(model, questions[number].prompt, 8)
            end = next((i for i, token in enumerate(answer) if token in ours.end_ids), len(answer))
            assert replies[number].ids == answer[:end]


def test_the_family_that_docs_engine_adds_equals_plain_peft(
    base_of: Callable[[str], BaseModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "engine.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    exec(page.rpartition("```python\n")[2].partition("```")[0], names)
    config = {**WIDTH, "sliding_window": 6, "use_bias": True}
    monkeypatch.setitem(TINY, "starcoder2", Tiny("Starcoder2", config, ("q_proj", "v_proj", "c_fc", "c_proj")))
    monkeypatch.setitem(FAMILIES, "Starcoder2ForCausalLM", names["Starcoder2"])
    ours, theirs = base_of("starcoder2"), base_of("starcoder2")
    assert type(decoder_of(ours.model)) is names["Starcoder2"]
    (result, _) = training_loop.train(ours, jobs("starcoder2", tmp_path / "ours"), micro_batch=2, run_log=SilentLog())
    expected = reference.train(theirs, jobs("starcoder2", tmp_path / "theirs"), micro_batch=64, run_log=SilentLog())
    assert difference(result, next(r for r in expected if r.job.key == result.job.key)) < 1e-9


def test_a_base_of_no_family_runs_through_transformers_and_one_line_says_so(
    base_of: Callable[[str], BaseModel], caplog: pytest.LogCaptureFixture
) -> None:
    base = base_of("gpt_neox")
    with caplog.at_level(logging.WARNING):
        assert decoder_of(base.model) is decoder_of(base.model) is None
    (line,) = [record.getMessage() for record in caplog.records if record.name.startswith("clusterlora")]
    assert line.startswith("GPTNeoXForCausalLM runs through transformers, several times slower: engine/families writes out Llama")


@pytest.mark.whole
@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
def test_a_written_out_model_is_freed_with_its_last_user(name: str) -> None:
    model = model_of(TINY[name], 300)
    decoder_of(model)
    alive = ref(model)
    del model
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("llama", {"hidden_act": "relu"}, "its activation is relu"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "its rotary embeddings are dynamic"),
    ],
)
def test_a_configuration_that_its_family_does_not_compute_is_not_written_out(
    name: str, change: dict[str, Any], reason: str, tiny_base_folder: Path
) -> None:
    model = model_of(replace(TINY[name], config=TINY[name].config | change), 300)
    assert FAMILIES[type(model).__name__].unsupported(model) == reason


@pytest.mark.whole
@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("llama", {"sliding_window": 4}),
        ("llama", {"final_logit_softcapping": 1.0, "attn_logit_softcapping": 1.0}),
        ("gpt2", {"sliding_window": 4, "final_logit_softcapping": 1.0}),
        ("gemma3", {"attn_logit_softcapping": 0.5}),
    ],
)
def test_settings_that_a_class_has_and_does_not_use_change_nothing(
    name: str, change: dict[str, Any], base_of: Callable[[str], BaseModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TINY, name, replace(TINY[name], config=TINY[name].config | change))
    ours, theirs = base_of(name), base_of(name)
    assert decoder_of(ours.model) is not None
    results = {r.job.key: r for r in training_loop.train(ours, jobs(name, tmp_path / "ours"), micro_batch=2, run_log=SilentLog())}
    expected = {r.job.key: r for r in reference.train(theirs, jobs(name, tmp_path / "theirs"), micro_batch=64, run_log=SilentLog())}
    assert max(difference(results[key], expected[key]) for key in expected) < 1e-9


def test_a_window_that_a_class_does_not_read_changes_no_answer_of_a_model_of_the_callers(
    base_of: Callable[[str], BaseModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TINY, "gpt_neox", replace(TINY["gpt_neox"], config=TINY["gpt_neox"].config | {"sliding_window": 4}))
    theirs, prompts = base_of("gpt_neox"), [sequences(n)[0].ids * 3 for n in range(4)]
    with frozen_base(theirs.model, theirs.tokenizer) as base:
        backend = inference_backends.inference_backend(base, [])
        questions = [Question(prompt, 0, ()) for prompt in prompts]
        replies = {reply.number: reply.ids for reply in backend.reply(questions, max_new_tokens=8, batch_size=4)}
        backend.close()
    for number, prompt in enumerate(prompts):
        answer = greedy(theirs.model, prompt, 8)
        end = next((i for i, token in enumerate(answer) if token in theirs.end_ids), len(answer))
        assert replies[number] == answer[:end]
    assert theirs.model.config.sliding_window == 4, "the caller's model is afterwards as it was"


@pytest.mark.parametrize(
    ("name", "change"), [("gemma3", {"use_bidirectional_attention": True}), ("llama", {"is_causal": False})], ids=["gemma3", "llama"]
)
def test_a_base_that_attends_to_what_follows_is_refused(name: str, change: dict[str, Any], base_of: Callable[[str], BaseModel]) -> None:
    model = model_of(replace(TINY[name], config=TINY[name].config | change), 300)
    with pytest.raises(ModelUnavailable, match="attends to what follows a token as well"), frozen_base(model, base_of("llama").tokenizer):
        pass


@pytest.mark.parametrize(
    ("name", "config", "setting"),
    [
        ("BertLMHeadModel", transformers.BertConfig, "is_decoder = false"),
        ("RoFormerForCausalLM", transformers.RoFormerConfig, "is_decoder = false"),
        ("XLMWithLMHeadModel", transformers.XLMConfig, "causal = false"),
        ("XLNetLMHeadModel", transformers.XLNetConfig, 'attn_type = "bi"'),
    ],
)
def test_an_encoder_is_refused_though_transformers_counts_its_class_among_the_causal_ones(name: str, config: Any, setting: str) -> None:
    with torch.device("meta"):
        model = getattr(transformers, name)(config(vocab_size=300))
    with pytest.raises(ModelUnavailable, match=f"base model theirs attends to what follows a token as well .{setting} in its config"):
        refuse_bidirectional(model, "theirs")


@pytest.mark.parametrize(
    ("name", "config"), [("RobertaForCausalLM", transformers.RobertaConfig), ("XLMRobertaForCausalLM", transformers.XLMRobertaConfig)]
)
def test_a_model_that_counts_positions_from_another_number_is_refused(name: str, config: Any) -> None:
    with torch.device("meta"):
        model = getattr(transformers, name)(config(vocab_size=300, is_decoder=True))
    with pytest.raises(ModelUnavailable, match=f"base model theirs is a {name}, which counts positions from its padding token's id"):
        refuse_what_cannot_be_computed(model, "theirs")


@pytest.mark.filterwarnings("ignore")  # what transformers says of small configurations
@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("Gemma4ForCausalLM", {"use_bidirectional_attention": "vision", "hidden_size_per_layer_input": 8}),
        ("GPTNeoXForCausalLM", {}),
        ("BertLMHeadModel", {"is_decoder": True}),
        (
            "GraniteMoeHybridForCausalLM",
            {"layer_types": ["full_attention"] * 2, "num_local_experts": 0, "shared_intermediate_size": 48, "mamba_n_heads": 8},
        ),
    ],
)
def test_what_attends_to_what_came_before_alone_is_taken_though_its_class_can_do_otherwise(name: str, config: dict[str, Any]) -> None:
    kind: Any = getattr(transformers, name)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 300}
    with torch.device("meta"):
        model = kind(kind.config_class(**sizes, **config))
    refuse_what_cannot_be_computed(model, "theirs")


@pytest.mark.whole
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")  # PEFT's, where only the output layer has an adapter
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_neox"])
def test_adapters_on_the_output_layer_too_equal_plain_peft_and_one_line_says_which_path_they_take(
    name: str, base_of: Callable[[str], BaseModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    head = "embed_out" if name == "gpt_neox" else "lm_head"
    monkeypatch.setitem(TINY, name, replace(TINY[name], targets=(TINY[name].targets[0], head)))
    ours, theirs = base_of(name), base_of(name)
    with caplog.at_level(logging.WARNING):
        results = {r.job.key: r for r in training_loop.train(ours, jobs(name, tmp_path / "ours"), micro_batch=2, run_log=SilentLog())}
    expected = {r.job.key: r for r in reference.train(theirs, jobs(name, tmp_path / "theirs"), micro_batch=64, run_log=SilentLog())}
    assert max(difference(results[key], expected[key]) for key in expected) < 1e-9
    said = f"training through transformers, several times slower: adapters on {head} lie outside the blocks that"
    assert (said in caplog.text) == (name in WRITTEN_OUT)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        backend = inference_backends.inference_backend(base_of(name), [read_weights(results[key].folder) for key in ("0", "1")])
    assert (f"answering through transformers, several times slower: adapters on {head} lie outside" in caplog.text) == (name in WRITTEN_OUT)
    assert_answers_of_peft(backend, base_of, name, [results[key].folder for key in ("0", "1")])


def assert_answers_of_peft(
    backend: inference_backends.InferenceBackend, base_of: Callable[[str], BaseModel], name: str, folders: list[Path]
) -> None:
    questions = [Question(sequences(n)[0].ids, slot, sequences(9)[0].ids[:3]) for slot in range(len(folders) + 1) for n in range(3)]
    replies = {reply.number: reply for reply in backend.reply(questions, max_new_tokens=8, batch_size=8)}
    backend.close()
    models = [base_of(name).model, *(PeftModel.from_pretrained(base_of(name).model, str(folder)).eval() for folder in folders)]
    for number, question in enumerate(questions):
        assert replies[number].ids == greedy(models[question.slot], question.prompt, 8)
        with torch.no_grad():
            logits = models[question.slot](input_ids=torch.tensor([question.prompt + question.reference])).logits[0, -4:-1]
        assert replies[number].nll == pytest.approx(float(functional.cross_entropy(logits, torch.tensor(question.reference))), rel=1e-5)


@pytest.mark.whole
def test_adapters_on_embeddings_are_trained_and_asked_one_by_one_through_peft(
    base_of: Callable[[str], BaseModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(TINY, "llama", replace(TINY["llama"], targets=("q_proj", "embed_tokens")))
    with caplog.at_level(logging.WARNING):
        results = list(train_any(base_of("llama"), jobs("llama", tmp_path), micro_batch=2, run_log=SilentLog()))
    assert "training 2 adapters one after another with PEFT: layer model.embed_tokens is a Embedding, not a Linear" in caplog.text
    folders = [result.folder for result in results]
    assert any("lora_embedding_A" in name for name in load_file(folders[0] / "adapter_model.safetensors"))
    backend = inference_backends.inference_backend(base_of("llama"), [read_weights(folder) for folder in folders])
    assert_answers_of_peft(backend, base_of, "llama", folders)
