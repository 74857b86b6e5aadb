"""A base that bitsandbytes holds in 4 or 8 bits: adapters and answers are those of PEFT with bitsandbytes."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from accelerate import dispatch_model  # pyrefly: ignore[implicit-reexport]
from peft import PeftModel
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from clusterlora.engine import AdapterJob, generate, inference_backends, reference, train_adapters, training_loop
from clusterlora.engine.base import BaseModel
from clusterlora.engine.families import decoder_of
from clusterlora.engine.generation import Question, Reply
from clusterlora.engine.kinds import read_weights
from clusterlora.engine.placement import is_spread
from clusterlora.engine.training import train as train_any
from clusterlora.models import linear_layers, quantised
from clusterlora.models.base import load_base
from clusterlora.models.quantised import bitsandbytes_arguments
from clusterlora.ports.run_log import SilentLog
from clusterlora.ports.stores import Stores
from clusterlora.requests import EvaluationRequest
from clusterlora.settings import Quantisation
from clusterlora.stages.evaluate import evaluate
from deployments.fork_server import PRELOADED
from tests.fixtures.families import ALL, RECIPE, TINY, Tiny, difference, jobs, sequences
from tests.fixtures.pretended_device import ELSEWHERE, pretended_device
from tests.fixtures.stages import LOG, rows_of, study_of_five, train_named

pytestmark = [
    pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs bitsandbytes: make quantised"),
    pytest.mark.filterwarnings("ignore:MatMul8bitLt"),
]

WIDE: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
NEW = {
    "qwen2, quantised": Tiny("Qwen2", {**WIDE, "intermediate_size": 128, "num_key_value_heads": 2}, ALL),
    "gpt2, quantised": Tiny("GPT2", {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256}, ("c_attn", "c_proj", "c_fc")),
    "gpt_neox, quantised": Tiny("GPTNeoX", {**WIDE, "intermediate_size": 128}, ("query_key_value", "dense_4h_to_h")),
}
CASES = [(name, quantisation) for name in NEW for quantisation in ("nf4", "int8")]


@pytest.fixture
def folder_of(tiny_base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Return a function that saves a random model of a family with the tiny base's tokenizer."""

    def save(name: str) -> Path:
        tiny, folder = NEW[name], tmp_path / "base"
        monkeypatch.setitem(TINY, name, tiny)
        tokenizer: Any = AutoTokenizer.from_pretrained(tiny_base_folder)
        ids = {"bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0}
        config = getattr(transformers, f"{tiny.architecture}Config")(vocab_size=len(tokenizer) + 8, **ids, **tiny.config)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(config)
            for parameter in model.parameters():
                torch.nn.init.normal_(parameter.data, std=0.3)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return save


def stock(folder: Path, quantisation: Quantisation) -> Any:
    """Return the model as transformers and bitsandbytes load it."""
    config = BitsAndBytesConfig(**bitsandbytes_arguments(quantisation, "float32"))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, quantization_config=config, device_map={"": "cpu"})
    return model.eval().requires_grad_(False)


def as_in_training(model: Any) -> Any:
    """Let bitsandbytes compute as it does while it trains, for good: on a CPU, answers round activations, or scales, as well."""
    for module in model.modules():
        if type(module).__name__ in ("Linear4bit", "Linear8bitLt"):
            module.train()
            module.train = lambda _mode=True, module=module: module
    return model


@pytest.mark.parametrize(("name", "quantisation"), CASES)
def test_adapters_trained_together_equal_those_of_peft_with_bitsandbytes(
    name: str, quantisation: Quantisation, folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = folder_of(name)
    ours = load_base(str(folder), quantisation=quantisation)
    assert (decoder_of(ours.model) is not None) == ("neox" not in name)
    theirs = replace(ours, model=as_in_training(stock(folder, quantisation)))
    results = {r.job.key: r for r in training_loop.train(ours, jobs(name, tmp_path / "ours"), micro_batch=2, run_log=SilentLog())}
    expected = {r.job.key: r for r in reference.train(theirs, jobs(name, tmp_path / "theirs"), micro_batch=64, run_log=SilentLog())}
    for key, result in expected.items():
        assert difference(results[key], result) < 1e-3
        assert results[key].losses == pytest.approx(result.losses, abs=1e-4)


def asked() -> list[Question]:
    start = sequences(9)[0].ids * 2
    return [Question(start[: 40 + 5 * n] + sequences(n)[1].ids, slot, start[:6]) for slot in (0, 1, 2) for n in range(3)]


def replies(base: BaseModel, folders: Sequence[Path], questions: Sequence[Question], n_tokens: int = 8) -> list[Reply]:
    backend = inference_backends.inference_backend(base, [read_weights(folder) for folder in folders])
    try:
        return sorted(backend.reply(questions, max_new_tokens=n_tokens, batch_size=8), key=lambda reply: reply.number)
    finally:
        backend.close()


def peft_nll(model: Any, question: Question) -> float:
    ids = question.prompt + question.reference
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    n = len(question.reference)
    return float(functional.cross_entropy(logits[-n - 1 : -1], torch.tensor(ids[-n:])))


@pytest.mark.parametrize(("name", "quantisation"), CASES)
def test_answers_and_likelihoods_are_those_of_peft_with_bitsandbytes_within_what_it_rounds(
    name: str, quantisation: Quantisation, folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = folder_of(name)
    base = load_base(str(folder), quantisation=quantisation)
    trained = reference.train(load_base(str(folder)), jobs(name, tmp_path), micro_batch=64, run_log=SilentLog())
    folders = [result.folder for result in sorted(trained, key=lambda result: result.job.key)]
    questions = asked()
    given, from_dense = replies(base, folders, questions), list[float]()
    for slot in (0, 1, 2):

        def adapted(model: Any, folder: Path | None = folders[slot - 1] if slot else None) -> Any:
            return model if folder is None else PeftModel.from_pretrained(model, str(folder)).eval()

        exact, rounded = as_in_training(adapted(stock(folder, quantisation))), adapted(stock(folder, quantisation))
        dense = adapted(load_base(str(folder)).model)
        for reply in (reply for reply in given if questions[reply.number].slot == slot):
            question = questions[reply.number]
            assert reply.nll == pytest.approx(peft_nll(exact, question), rel=1e-4)
            assert abs(reply.nll - peft_nll(rounded, question)) < max(0.05, 0.02 * reply.nll)
            from_dense.append(abs(reply.nll - peft_nll(dense, question)))
            ids = list(question.prompt)
            for token in reply.ids:
                with torch.no_grad():
                    assert int(exact(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()) == token
                ids.append(token)
    assert max(from_dense) > 2e-3, "nothing was quantised"


def spread(base: BaseModel, monkeypatch: pytest.MonkeyPatch) -> BaseModel:
    """Spread a quantised base over the CPU and a pretended device; bitsandbytes' weights stay, and what they dequantise to is moved."""
    model: Any = base.model
    held = {module: module._parameters["weight"] for module in model.modules() if quantised.is_quantised(module)}
    for module in held:
        module._parameters["weight"] = torch.nn.Parameter(torch.zeros(1), requires_grad=False)
    n_layers = model.config.num_hidden_layers
    where = {f"model.layers.{i}": "cpu" if i < n_layers // 2 else ELSEWHERE for i in range(n_layers)}
    rest = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.norm": ELSEWHERE, "lm_head": "cpu"}
    here: Any = "cpu"
    dispatched: Any = dispatch_model(model, {**where, **rest}, main_device=here, skip_keys=model._skip_keys_device_placement)
    device_of = {module: where[f"model.layers.{name.split('.')[2]}"] for name, module in dispatched.named_modules() if module in held}
    for module, weight in held.items():
        # The first parameter of a layer says where it is.
        beacon = torch.nn.Parameter(torch.zeros(1).to(device_of[module]), requires_grad=False)
        module._parameters = {"beacon": beacon, **module._parameters, "weight": weight}
    dense = quantised.dequantised
    for where_used in (quantised, linear_layers):
        monkeypatch.setattr(where_used, "dequantised", lambda module, dtype: dense(module, dtype).to(device_of[module]))
    return replace(base, model=dispatched)


@pytest.mark.parametrize("quantisation", ["nf4", "int8"])
def test_a_quantised_base_on_two_devices_trains_and_answers_as_on_one(
    quantisation: Quantisation, folder_of: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "qwen2, quantised"
    folder = folder_of(name)
    one = load_base(str(folder), quantisation=quantisation)
    expected = {r.job.key: r for r in training_loop.train(one, jobs(name, tmp_path / "one"), micro_batch=64, run_log=SilentLog())}
    folders, questions = [expected[key].folder for key in sorted(expected)], asked()
    answers = replies(one, folders, questions)
    loaded = load_base(str(folder), quantisation=quantisation)
    with pretended_device():
        two = spread(loaded, monkeypatch)
        assert is_spread(two.model)
        for result in training_loop.train(two, jobs(name, tmp_path / "two"), micro_batch=2, run_log=SilentLog()):
            assert difference(result, expected[result.job.key]) < 1e-3
            assert result.losses == pytest.approx(expected[result.job.key].losses, abs=1e-4)
        given = replies(two, folders, questions)
    assert [reply.ids for reply in given] == [reply.ids for reply in answers]
    assert [reply.nll for reply in given] == pytest.approx([reply.nll for reply in answers], abs=1e-4)


@pytest.mark.parametrize("quantisation", ["nf4", "int8"])
def test_a_model_of_the_callers_is_used_quantised_as_it_was_loaded_and_is_afterwards_as_before(
    quantisation: Quantisation, folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = folder_of("qwen2, quantised")
    tokenizer, model = AutoTokenizer.from_pretrained(folder), stock(folder, quantisation)
    ask = {"role": "user", "content": "Make it cosy"}
    people = [AdapterJob(f"p{n}", [[ask, {"role": "assistant", "content": f"Lamp {n} is on."}]], RECIPE) for n in range(2)]
    results = train_adapters(model, people, tokenizer=tokenizer, folder=tmp_path / "ours", progress=lambda _progress: None)
    texts = generate(model, [[ask]] * 2, adapters=results, tokenizer=tokenizer, max_new_tokens=8)
    assert {type(module).__bases__ for module in model.modules() if "bit" in type(module).__name__} == {(torch.nn.Linear,)}
    loaded = load_base(str(folder), quantisation=quantisation)
    again = train_adapters(loaded, people, folder=tmp_path / "theirs", progress=lambda _progress: None)
    assert [result.losses for result in results] == [pytest.approx(result.losses, rel=1e-6) for result in again]
    assert texts == generate(loaded, [[ask]] * 2, adapters=again, max_new_tokens=8)
    other = train_adapters(load_base(str(folder)), people, folder=tmp_path / "dense", progress=lambda _progress: None)
    assert len({result.job.key for result in (*results, *again, *other)}) == 6


def test_an_answer_in_int8_does_not_depend_on_who_else_is_in_the_batch(folder_of: Callable[[str], Path]) -> None:
    base = load_base(str(folder_of("gpt_neox, quantised")), quantisation="int8")
    # bitsandbytes leaves columns out of its rounding that are large in any row.
    base.model.get_input_embeddings().weight[7] *= 200  # pyrefly: ignore[bad-index, unsupported-operation]
    plain, loud = asked()[0], Question((7,) * 9, 0, (7, 7))
    alone, (beside, _) = replies(base, [], [plain]), replies(base, [], [plain, loud])
    assert beside.nll == pytest.approx(alone[0].nll, rel=1e-5)


def test_no_dense_copy_of_a_quantised_weight_is_kept(folder_of: Callable[[str], Path]) -> None:
    folder = folder_of("qwen2, quantised")
    base, dense = load_base(str(folder), quantisation="nf4"), load_base(str(folder))
    decoder = decoder_of(base.model)
    assert decoder is not None
    assert all(linear.weight is None for linear in decoder.fused_linears)

    def n_bytes(model: Any) -> int:
        return sum(parameter.nbytes for name, parameter in model.named_parameters() if "_proj.weight" in name)

    assert n_bytes(base.model) * 8 == n_bytes(dense.model)


@pytest.mark.parametrize("kind", ["dora", "prefix"])
def test_other_kinds_of_adapters_train_on_a_quantised_base_as_on_what_bitsandbytes_computes(
    kind: str, folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    name = "qwen2, quantised"
    folder = folder_of(name)
    ours = load_base(str(folder), quantisation="nf4")
    theirs = replace(ours, model=as_in_training(stock(folder, "nf4")))

    def of_kind(where: str) -> list[Any]:
        return [replace(job, recipe=replace(job.recipe, kind=kind)) for job in jobs(name, tmp_path / where)]

    results = {r.job.key: r for r in train_any(ours, of_kind("ours"), micro_batch=2, run_log=SilentLog())}
    for result in train_any(theirs, of_kind("theirs"), micro_batch=64, run_log=SilentLog()):
        assert difference(results[result.job.key], result) < 1e-3


def test_a_study_on_a_quantised_base_trains_and_answers_with_it(tiny_base_folder: Path, stores: Stores) -> None:
    people = ("unified", *(f"persona-{number:04d}" for number in range(5)))
    nlls: dict[Quantisation, list[float]] = {"none": [], "nf4": []}
    for quantisation, of_study in nlls.items():
        study = study_of_five(tiny_base_folder, stores, name=f"held-in-{quantisation}", quantisation=quantisation)
        train_named(study, stores, people)
        evaluate(EvaluationRequest(study_name=study.name), stores, LOG)
        of_study += [row.scores["nll"] for row in rows_of(study, stores)]
    assert len(nlls["none"]) == len(nlls["nf4"])
    differences = [abs(one - other) for one, other in zip(*nlls.values(), strict=True)]
    assert sum(differences) / len(differences) > 0.01, "trained or answered on the base as it was"


def test_runs_are_forked_beside_bitsandbytes_which_initialises_cuda_when_it_is_imported() -> None:
    script = """
import importlib, os
from deployments.fork_server import _has_initialised_cuda, can_be_preloaded

for module in can_be_preloaded():
    importlib.import_module(module)
if (fork := os.fork()) == 0:
    os._exit(_has_initialised_cuda())
print(len(can_be_preloaded()), os.waitpid(fork, 0)[1])
"""
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout == f"{len(PRELOADED) - 1} 0\n", done.stderr
