"""The router answers each persona with its own composition of adapters, exactly as PEFT would, and names it in the answer."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer

from clusterlora.adapters.held import HeldAdapters
from clusterlora.adapters.shards import open_shard, write_shard
from clusterlora.adapters.weights import adapter_files, weights_sha256
from clusterlora.engine.attention import Heads
from clusterlora.errors import BadData, ModelUnavailable
from clusterlora.models.base import base_revision, load_base
from clusterlora.serving.router import Router
from clusterlora.settings import PreparedModel
from clusterlora.stores.json_codec import plain, to_json
from clusterlora.stores.routing_table import KeyedAdapter, KeyedComposition, RoutingTable, read_routing_table
from clusterlora.values import Exchange
from tests.fixtures.imported import write_by_peft

pytestmark = pytest.mark.numeric

QUESTION = [{"role": "user", "content": "make it cosy"}]


def random_adapter(base: Path, folder: Path, *, seed: int, rank: int) -> Path:
    """Write a PEFT folder whose update is large enough to change answers."""
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(load_base(str(base)).model, config)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    model.save_pretrained(str(folder))
    (folder / "README.md").unlink(missing_ok=True)
    return folder


@pytest.fixture(scope="module")
def folders(tiny_base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    return {
        key: random_adapter(tiny_base_folder, root / key, seed=seed, rank=rank)
        for seed, (key, rank) in enumerate([("aaaa", 2), ("bbbb", 4), ("cccc", 3)])
    }


@pytest.fixture(scope="module")
def table(tiny_base_folder: Path) -> RoutingTable:
    return RoutingTable(
        study="s",
        method="selective_routing",
        model=PreparedModel(base=str(tiny_base_folder), system_prompt="Be brief."),
        base_revision=base_revision(str(tiny_base_folder)),
        max_new_tokens=12,
        default=KeyedComposition((KeyedAdapter("aaaa"),)),
        personas={
            "ann": KeyedComposition((KeyedAdapter("bbbb"),)),
            "../../bob": KeyedComposition((KeyedAdapter("aaaa"), KeyedAdapter("cccc", 0.5))),
            "cas": KeyedComposition(),
        },
        names={"aaaa": "unified", "bbbb": "cluster-00"},
    )


@pytest.fixture(scope="module")
def router(table: RoutingTable, folders: dict[str, Path]) -> Router:
    return Router(table, HeldAdapters(folders))


def test_a_model_that_an_earlier_version_registered_is_read() -> None:
    earlier = {"layers": [{"key": "aaaa", "weight": 0.5}], "shots": 2, "described": True}
    table = {"study": "s", "method": "m", "model": plain(PreparedModel()), "base_revision": "b", "max_new_tokens": 8}
    read = read_routing_table(json.dumps(table | {"default": earlier, "personas": {"ann": earlier}}))
    composition = KeyedComposition((KeyedAdapter("aaaa", 0.5),), shots=2, persona_in_prompt=True)
    assert (read.default, read.personas) == (composition, {"ann": composition})


def test_an_adapter_with_another_digest_than_recorded_is_refused(table: RoutingTable, folders: dict[str, Path]) -> None:
    digests = {key: weights_sha256(folder) for key, folder in folders.items()}
    swapped = {**folders, "aaaa": folders["bbbb"], "bbbb": folders["aaaa"]}
    with pytest.raises(BadData, match="adapter aaaa has SHA-256"):
        Router(replace(table, weights_sha256=digests), HeldAdapters(swapped))


def ask(persona_id: str, **more: Any) -> dict[str, Any]:
    return {"persona_id": persona_id, "messages": QUESTION, **more}


def with_peft(
    base_folder: Path, layers: Sequence[tuple[Path, float]], system: str = "Be brief.", before: Sequence[dict[str, str]] = ()
) -> str:
    """Answer with PEFT and transformers alone: the sum of the layers, greedily."""
    base = load_base(str(base_folder))
    model: Any = base.model
    for number, (folder, weight) in enumerate(layers):
        name = f"layer{number}"
        if number == 0:
            model = PeftModel.from_pretrained(model, folder, adapter_name=name)
        else:
            model.load_adapter(folder, adapter_name=name)
        for module in model.modules():
            if isinstance(module, LoraLayer):
                module.set_scale(name, weight)
    if layers:
        model.base_model.set_adapter([f"layer{n}" for n in range(len(layers))])
    text: Any = base.tokenizer.apply_chat_template(
        [{"role": "system", "content": system}, *before, *QUESTION], tokenize=False, add_generation_prompt=True
    )
    prompt = torch.tensor([base.tokenizer(text, add_special_tokens=False)["input_ids"]])
    with torch.inference_mode():
        ids = model.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=12, do_sample=False)
    return str(base.tokenizer.decode(ids[0, prompt.shape[1] :], skip_special_tokens=True)).strip()


def test_every_persona_gets_the_answer_that_peft_gives_with_its_stack(
    router: Router, folders: dict[str, Path], tiny_base_folder: Path
) -> None:
    answers = router.answer([ask("ann"), ask("../../bob"), ask("cas"), ask("somebody new"), ask("ann")])
    expected = [
        with_peft(tiny_base_folder, [(folders["bbbb"], 1.0)]),
        with_peft(tiny_base_folder, [(folders["aaaa"], 1.0), (folders["cccc"], 0.5)]),
        with_peft(tiny_base_folder, []),
        with_peft(tiny_base_folder, [(folders["aaaa"], 1.0)]),
    ]
    assert [a["text"] for a in answers] == [*expected, expected[0]]
    # If two of them agreed, this test could not see a wrong route.
    assert len(set(expected)) == 4


def test_an_answer_names_its_composition(router: Router) -> None:
    answers = router.answer([ask("ann"), ask("../../bob"), ask("cas"), ask("somebody new")])
    assert [a["answered_by"] for a in answers] == [
        "cluster-00",
        "unified + cccc x 0.5",
        "base model",
        "unified (default: persona 'somebody new' is not in study 's')",
    ]
    assert [a["persona_id"] for a in answers] == ["ann", "../../bob", "cas", "somebody new"]


def test_a_model_of_one_adapter_answers_every_persona_with_it(table: RoutingTable, folders: dict[str, Path]) -> None:
    router = Router(replace(table, personas={}), HeldAdapters(folders))
    (answer,) = router.answer([ask("anybody")])
    assert answer["answered_by"] == "unified"


def test_a_system_turn_of_the_caller_replaces_the_studys(router: Router, folders: dict[str, Path], tiny_base_folder: Path) -> None:
    (answer,) = router.answer([ask("ann") | {"messages": [{"role": "system", "content": "Shout."}, *QUESTION]}])
    assert answer["text"] == with_peft(tiny_base_folder, [(folders["bbbb"], 1.0)], system="Shout.")


def test_description_and_context_go_into_the_prompt_as_in_training(
    table: RoutingTable, folders: dict[str, Path], tiny_base_folder: Path
) -> None:
    shown = replace(table, model=replace(table.model, persona_in_prompt=True), descriptions={"ann": "a baker"})
    (answer,) = Router(shown, HeldAdapters(folders)).answer([ask("ann", context={"time_of_day": "late_evening"})])
    system = "Be brief.\nThe user: a baker\nNow: late evening."
    assert answer["text"] == with_peft(tiny_base_folder, [(folders["bbbb"], 1.0)], system=system)


def test_a_stack_may_show_the_persona_and_what_it_was_answered_before(
    table: RoutingTable, folders: dict[str, Path], tiny_base_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clusterlora.serving.router.load_embedder", lambda _name: LengthEmbedder())
    question = QUESTION[-1]["content"]
    described = replace(
        table,
        personas={**table.personas, "dan": KeyedComposition((KeyedAdapter("bbbb"),), shots=1, persona_in_prompt=True)},
        descriptions={"dan": "a baker", "ann": "a diver"},
        exchanges={"dan": (Exchange("no", "never"), Exchange(question, "as ever"))},
    )
    dan, ann = Router(described, HeldAdapters(folders)).answer([ask("dan"), ask("ann")])
    before = [{"role": "user", "content": question}, {"role": "assistant", "content": "as ever"}]
    assert dan["text"] == with_peft(tiny_base_folder, [(folders["bbbb"], 1.0)], "Be brief.\nThe user: a baker", before)
    assert dan["answered_by"] == "cluster-00 with 1 of the persona's exchanges"
    assert ann["text"] == with_peft(tiny_base_folder, [(folders["bbbb"], 1.0)]), "whose composition does not show it is not described"


class LengthEmbedder:
    """Texts of one length are alike."""

    name = "length"
    revision = "1"

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        angles = np.array([[len(text) / 100] for text in texts])
        return np.hstack([np.cos(angles), np.sin(angles)])


def test_a_shorter_answer_is_the_beginning_of_the_longer_one(router: Router) -> None:
    long, short = router.answer([ask("ann"), ask("ann", max_new_tokens=3)])
    assert len(short["text"]) < len(long["text"])
    assert long["text"].startswith(short["text"].rstrip("\ufffd"))


def test_no_requests_get_no_answers(router: Router) -> None:
    assert router.answer([]) == []


@pytest.mark.parametrize(
    ("request_", "complaint"),
    [
        ({"messages": QUESTION}, "request 1: persona_id is None"),
        ({"persona_id": 7, "messages": QUESTION}, "request 1: persona_id is 7"),
        ({"persona_id": "ann"}, "request 1: messages must be"),
        ({"persona_id": "ann", "messages": []}, "request 1: messages must be"),
        ({"persona_id": "ann", "messages": "hello"}, "request 1: messages must be"),
        ({"persona_id": "ann", "messages": [*QUESTION, {"role": "assistant", "content": "yes"}]}, "ends with the user's"),
        ({"persona_id": "ann", "messages": [{"role": "robot", "content": "x"}]}, "system|user|assistant"),
        ({"persona_id": "ann", "messages": [{"role": "user", "content": 3}]}, "request 1: message"),
        (ask("ann", max_new_tokens=0), "request 1: max_new_tokens is 0"),
    ],
)
def test_a_request_that_cannot_be_answered_is_named(router: Router, request_: dict[str, Any], complaint: str) -> None:
    with pytest.raises(BadData, match=complaint.replace("|", r"\|")):
        router.answer([ask("ann"), request_])


def test_other_base_weights_than_the_adapters_were_trained_on_are_refused(table: RoutingTable, folders: dict[str, Path]) -> None:
    with pytest.raises(ModelUnavailable, match="trained on 0000"):
        Router(replace(table, base_revision="0000"), HeldAdapters(folders))


def test_a_missing_adapter_is_named(table: RoutingTable, folders: dict[str, Path]) -> None:
    with pytest.raises(BadData, match="cccc"):
        Router(table, HeldAdapters({key: folder for key, folder in folders.items() if key != "cccc"}))


def test_a_router_is_read_back_from_its_files(table: RoutingTable, folders: dict[str, Path], router: Router, tmp_path: Path) -> None:
    (tmp_path / "routes.json").write_text(to_json(table))
    read = Router.load(tmp_path / "routes.json", folders["aaaa"].parent)
    assert read.answer([ask("../../bob")]) == router.answer([ask("../../bob")])


def test_people_with_different_stacks_are_answered_in_one_batch(router: Router, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []  # what a caller cannot see: how many rows go through every layer
    attend = Heads.attend

    def counting(self: Heads, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        rows.append(len(queries))
        return attend(self, queries, keys, values)

    monkeypatch.setattr(Heads, "attend", counting)
    router.answer([ask("ann", max_new_tokens=1), ask("cas", max_new_tokens=1), ask("a stranger", max_new_tokens=1)])
    assert rows == [3] * router._base.model.config.num_hidden_layers


def in_a_shard(folders: dict[str, Path], tmp_path: Path, n: int) -> tuple[HeldAdapters, dict[str, str]]:
    """Return `n` adapters with the weights of two of one form, in turns, in one shard; and their digests."""
    files = [adapter_files(folders[key]) for key in ("aaaa", "same")]
    by_key = {f"key{i:02d}": one for i in range(n) if (one := files[i % 2]) is not None}
    write_shard(tmp_path / "shard.safetensors", by_key)
    held = HeldAdapters({}, dict.fromkeys(by_key, tmp_path / "shard.safetensors"))
    return held, {key: held.sha256(key) for key in by_key}


@pytest.fixture
def many(table: RoutingTable, folders: dict[str, Path], tiny_base_folder: Path, tmp_path: Path) -> tuple[RoutingTable, HeldAdapters]:
    """Twelve people with an adapter of their own, in one shard."""
    same_form = random_adapter(tiny_base_folder, tmp_path / "same", seed=7, rank=2)
    held, digests = in_a_shard({**folders, "same": same_form}, tmp_path, 12)
    personas = {f"p{i:02d}": KeyedComposition((KeyedAdapter(key),)) for i, key in enumerate(sorted(held.keys))}
    return replace(table, personas=personas, default=KeyedComposition(), names={}, weights_sha256=digests), held


@pytest.mark.parametrize("n_resident", [1, 5])
def test_adapters_that_come_and_go_answer_as_when_all_are_in_memory(many: tuple[RoutingTable, HeldAdapters], n_resident: int) -> None:
    table, held = many
    everybody = [*table.personas, "nobody"]
    batches = [everybody, everybody[::-3], [everybody[0]], ["p03", "nobody", "p03"], everybody]
    resident, paged = Router(table, held), Router(table, held, n_resident=n_resident)
    for batch in batches:
        requests = [ask(persona_id) for persona_id in batch]
        assert paged.answer(requests) == resident.answer(requests)
    answers = {answer["text"] for answer in resident.answer([ask(persona_id) for persona_id in everybody])}
    assert len(answers) == 3, "the two adapters and the base answer each in their own way"


def test_a_row_that_changed_after_loading_is_refused_when_it_comes_into_memory(
    many: tuple[RoutingTable, HeldAdapters], tmp_path: Path
) -> None:
    table, held = many
    router = Router(table, held, n_resident=2)
    file = tmp_path / "shard.safetensors"
    write_shard(file, {key: open_shard(file).read(other) for key, other in zip(sorted(held.keys), sorted(held.keys)[1:], strict=False)})
    with pytest.raises(BadData, match="adapter key05 has SHA-256"):
        router.answer([ask("p05")])


def test_an_adapter_that_cannot_be_read_costs_nobody_else_their_place(many: tuple[RoutingTable, HeldAdapters], tmp_path: Path) -> None:
    table, held = many
    resident, paged = Router(table, held), Router(table, held, n_resident=2)
    paged.answer([ask("p00"), ask("p01")])
    file = tmp_path / "shard.safetensors"
    write_shard(file, open_shard(file).read_all() | {"key05": open_shard(file).read("key04")})
    for _ in range(3):
        with pytest.raises(BadData, match="adapter key05 has SHA-256"):
            paged.answer([ask("p05")])
        for persona_id in ("p02", "p01", "p00", "p03"):
            assert paged.answer([ask(persona_id)]) == resident.answer([ask(persona_id)])


def test_kinds_that_peft_adds_answer_from_a_shard_as_from_folders(table: RoutingTable, tiny_base_folder: Path, tmp_path: Path) -> None:
    doras = {
        key: write_by_peft(tmp_path / key, tiny_base_folder, seed=seed, use_dora=True, r=2, target_modules=["q_proj", "down_proj"])
        for seed, key in enumerate(("own1", "own2"))
    }
    by_key = {key: files for key, folder in doras.items() if (files := adapter_files(folder)) is not None}
    (tmp_path / "model").mkdir()
    write_shard(tmp_path / "model" / "shard.safetensors", by_key)
    personas = {"ann": KeyedComposition((KeyedAdapter("own1"),)), "bob": KeyedComposition((KeyedAdapter("own2"),))}
    of_doras = replace(table, personas=personas, default=KeyedComposition(), names={})
    requests = [ask("ann"), ask("bob"), ask("nobody")]
    for n_resident in (1, 5):
        # Nobody but the router has what is held, as where a model is loaded.
        router = Router(of_doras, HeldAdapters.of_model(tmp_path / "model"), n_resident=n_resident)
        assert router.answer(requests) == Router(of_doras, HeldAdapters(doras)).answer(requests)
