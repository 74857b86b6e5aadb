"""Registered models: listing, promotion to champion, and export for servers that read PEFT folders."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from clusterlora.adapters.compositions import combined_weights
from clusterlora.adapters.held import HeldAdapters
from clusterlora.adapters.weights import weights_sha256
from clusterlora.chat.source import with_system_prompt
from clusterlora.cli import main
from clusterlora.engine.kinds import read_weights
from clusterlora.engine.peft_folder import write_peft_folder
from clusterlora.engine.stacked import StackedModel
from clusterlora.errors import BadData, BadSettings, UnknownName
from clusterlora.metadata import ComparisonSummary, MethodScore, Provenance
from clusterlora.models.base import base_revision, load_base
from clusterlora.ports.model_registry import About
from clusterlora.recipe import Recipe
from clusterlora.registry.model_card import about
from clusterlora.serving.export import export
from clusterlora.serving.router import Router
from clusterlora.settings import PreparedModel, PreparedStudy
from clusterlora.stores.json_codec import plain, to_json
from clusterlora.stores.routing_table import KeyedAdapter, KeyedComposition, RoutingTable
from clusterlora.values import Dataset, Dialogue, Persona, Turn, WeightedAdapter
from tests.fixtures.servers import mlflow_artifacts

STUDY = "handed-over"
COMPOSITIONS = (
    KeyedComposition((KeyedAdapter("aaaa"),)),
    KeyedComposition((KeyedAdapter("bbbb"),)),
    KeyedComposition((KeyedAdapter("aaaa"), KeyedAdapter("bbbb", 0.5))),
    KeyedComposition(),
)


def adapter(folder: Path, base: Path, *, seed: int, rank: int = 2, width: int = 32) -> Path:
    import torch

    generator = torch.Generator().manual_seed(seed)
    tensors = {
        f"model.layers.{n}.self_attn.q_proj.lora_{side}.weight": torch.randn(shape, generator=generator)
        for n in range(2)
        for side, shape in (("A", (rank, width)), ("B", (width, rank)))
    }
    write_peft_folder(folder, tensors, Recipe(rank=rank, target_modules=("q_proj",)), base=str(base))
    return folder


@pytest.fixture
def table(tiny_base_folder: Path) -> RoutingTable:
    both = KeyedComposition((KeyedAdapter("aaaa"), KeyedAdapter("bbbb", 0.5)))
    return RoutingTable(
        study=STUDY,
        method="hybrid",
        model=PreparedModel(base=str(tiny_base_folder)),
        base_revision=base_revision(str(tiny_base_folder)),
        max_new_tokens=4,
        default=KeyedComposition((KeyedAdapter("aaaa"),)),
        personas={"ann": both, "bob": KeyedComposition(), "cleo": KeyedComposition((KeyedAdapter("aaaa"),))},
        names={"aaaa": "unified", "bbbb": "residual-0000"},
    )


@pytest.fixture
def artifacts(table: RoutingTable, tiny_base_folder: Path, tmp_path: Path) -> Path:
    (tmp_path / "artifacts").mkdir()
    (tmp_path / "artifacts" / "routes.json").write_text(to_json(table))
    for seed, key in enumerate(("aaaa", "bbbb")):
        adapter(tmp_path / "artifacts" / "adapters" / key, tiny_base_folder, seed=seed)
    return tmp_path / "artifacts"


def test_an_export_brings_the_chat_template_with_system_prompt_arguments_and_all_that_generation_needs(
    artifacts: Path, table: RoutingTable, tmp_path: Path
) -> None:
    given = replace(table, model=replace(table.model, template_arguments=(("level", '"high"'),), system_prompt='Say "é" to \U0001f600.'))
    (artifacts / "routes.json").write_text(to_json(given))
    export(artifacts, tmp_path / "out", "vllm")
    template = (tmp_path / "out" / "chat_template.jinja").read_text()
    assert '{% set level = "high" %}' in template
    tokenizer = load_base(table.model.base).tokenizer
    asked = [{"role": "user", "content": "hi"}]
    with_system = [{"role": "system", "content": 'Say "é" to \U0001f600.'}, *asked]
    given_by_us = tokenizer.apply_chat_template(asked, chat_template=template, tokenize=False)
    assert given_by_us == tokenizer.apply_chat_template(with_system, tokenize=False)
    routes = json.loads((tmp_path / "out" / "routes.json").read_text())
    expected = {
        "base_model": "base",
        "dtype": "float32",
        "system_prompt": 'Say "é" to \U0001f600.',
        "template_arguments": {"level": '"high"'},
        "max_new_tokens": 4,
        "stop_token_ids": [2],
    }
    assert routes.items() >= expected.items()
    serve = (tmp_path / "out" / "serve.sh").read_text()
    for option in ("serve base ", "--served-model-name base", "--dtype float32", "--chat-template chat_template", "--generation-config ."):
        assert option in serve
    assert not [file for file in text_files(tmp_path / "out") if str(tmp_path) in file or str(Path(table.model.base)) in file]


def text_files(folder: Path) -> list[str]:
    return [file.read_text() for file in sorted(folder.rglob("*")) if file.is_file() and file.suffix not in (".safetensors", ".model")]


def test_a_template_without_a_system_role_is_given_the_system_text_in_the_first_user_turn(tiny_base_folder: Path) -> None:
    tokenizer = load_base(str(tiny_base_folder)).tokenizer
    source = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}[{{ m.role }}] {{ m.content }}{% endfor %}"
    )
    template = with_system_prompt(source, "Be kind.", has_system_role=False)
    ask = {"role": "user", "content": "hi"}
    for turns in ([ask], [{"role": "system", "content": "Be kind."}, ask]):
        assert tokenizer.apply_chat_template(turns, chat_template=template, tokenize=False) == "[user] Be kind.\n\nhi"


ELSEWHERE = """
import contextlib, io, json, sys
sys.modules["clusterlora"] = None  # an import of it fails
code, answers = sys.argv[1], []
for persona, text in json.loads(sys.argv[2]):
    sys.argv[1:] = [persona, text]
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(code, {})
    answers.append(said.getvalue())
print(json.dumps(answers))
"""


@pytest.fixture(params=["embedded", "hub", "folder"])
def base_name(request: pytest.FixtureRequest, tiny_base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return a base model by each kind of name; that of the hub is in the hub's cache on this machine."""
    if request.param == "embedded":
        return "homelm"
    if request.param == "folder":
        return str(tiny_base_folder)
    commit, cache = "a" * 40, tmp_path / "hub" / "models--somebody--tiny"
    shutil.copytree(tiny_base_folder, cache / "snapshots" / commit)
    generation = json.loads((tiny_base_folder / "generation_config.json").read_text())
    (cache / "snapshots" / commit / "generation_config.json").write_text(json.dumps(generation | {"repetition_penalty": 1.5}))
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(commit)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return "somebody/tiny"


@pytest.mark.whole
def test_an_export_carried_elsewhere_gives_the_served_answers_by_the_lines_of_its_card(base_name: str, tmp_path: Path) -> None:
    table = RoutingTable(
        study=STUDY,
        method="hybrid",
        model=PreparedModel(base=base_name),
        base_revision=base_revision(base_name),
        max_new_tokens=12,
        default=KeyedComposition((KeyedAdapter("aaaa"),)),
        personas={f"p{n}": COMPOSITIONS[n % 4] for n in range(9)},
        names={"aaaa": "unified", "bbbb": "residual-0000"},
    )
    folders = {key: tmp_path / "artifacts" / "adapters" / key for key in ("aaaa", "bbbb")}
    width = load_base(base_name).model.config.hidden_size
    for seed, folder in enumerate(folders.values()):
        adapter(folder, Path(base_name), seed=seed, width=width)
    (tmp_path / "artifacts" / "routes.json").write_text(to_json(table))
    texts = ["Make it cosy", "good night", "I am home", "play jazz", "too cold", "what is on?", "film time", "dinner", "wake me at 7", "hi"]
    asked = [(f"p{n}", text) for n, text in enumerate(texts)]  # p9 is unknown
    served = Router(table, HeldAdapters(folders)).answer(
        [{"persona_id": persona_id, "messages": [{"role": "user", "content": text}]} for persona_id, text in asked]
    )
    export(tmp_path / "artifacts", tmp_path / "here", "peft")
    carried = tmp_path / "another machine" / "exported"
    carried.parent.mkdir()
    (tmp_path / "here").rename(carried)
    provenance = Provenance(
        clusterlora_version="1", git_revision=None, data_digest="a", base_revision=table.base_revision, n_personas=9, n_dialogues=9
    )
    study = PreparedStudy(model=table.model, evaluation=replace(PreparedStudy().evaluation, max_new_tokens=12))
    card = about(
        study, provenance, None, model=STUDY, method="hybrid", n_personas=9, weights_sha256={"aaaa": "f", "bbbb": "e"}, recipes=()
    ).card
    lines = card.partition("```python\n")[2].partition("```")[0]
    assert lines == (carried / "load.py").read_text()
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "hub"), "PYTHONPATH": ""}
    command = [sys.executable, "-c", ELSEWHERE, lines, json.dumps(asked)]
    ran = subprocess.run(command, env=environment, cwd=carried, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert [answer.strip() for answer in json.loads(ran.stdout.splitlines()[-1])] == [answer["text"] for answer in served]
    assert len({answer["text"] for answer in served}) > 5, "answers that are all the same show nothing"


def test_exported_folders_answer_in_peft_as_the_router_does(artifacts: Path, tiny_base_folder: Path, tmp_path: Path) -> None:
    import torch
    from peft import PeftModel

    exported = export(artifacts, tmp_path / "out", "peft")
    routes = json.loads((tmp_path / "out" / "routes.json").read_text())
    assert routes["personas"]["bob"] == "base"
    assert routes["personas"]["cleo"] == routes["default"]
    ids = torch.arange(3, 20)[None]
    base = load_base(str(tiny_base_folder)).model
    stacked = StackedModel(base)
    stacked.load(
        [combined_weights([WeightedAdapter("aaaa"), WeightedAdapter("bbbb", 0.5)], lambda key: read_weights(artifacts / "adapters" / key))]
    )
    with torch.no_grad(), stacked.rows(torch.tensor([1])):
        expected = base(input_ids=ids).logits
    stacked.close()
    name = exported.adapter_by_persona["ann"]
    model = PeftModel.from_pretrained(load_base(str(tiny_base_folder)).model, str(tmp_path / "out" / "adapters" / name))
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-4)
    compile((tmp_path / "out" / "load.py").read_text(), "load.py", "exec")


def test_exported_folders_hold_what_vllm_reads_and_are_named_by_their_content(artifacts: Path, tmp_path: Path) -> None:
    exported = export(artifacts, tmp_path / "out", "vllm")
    assert (exported.max_rank, len(exported.adapters)) == (8, 2)
    for name in exported.adapters:
        config = json.loads((tmp_path / "out" / "adapters" / name / "adapter_config.json").read_text())
        assert {"r", "lora_alpha", "target_modules"} <= config.keys()
        assert config["r"] <= exported.max_rank
        assert (config["bias"], config["modules_to_save"], config["use_dora"]) == ("none", None, False)
        assert (tmp_path / "out" / "adapters" / name / "adapter_model.safetensors").is_file()
    script = tmp_path / "out" / "serve.sh"
    subprocess.run(["sh", "-n", str(script)], check=True)
    assert "--enable-lora --max-lora-rank 8" in script.read_text()
    adapter(artifacts / "adapters" / "bbbb", Path("x"), seed=9)
    again = export(artifacts, tmp_path / "again", "vllm")
    assert len(set(again.adapters) & set(exported.adapters)) == 1, "other weights have the same name, or the same weights another"


def test_an_export_says_how_a_base_was_quantised_and_vllm_gets_what_it_can_do(artifacts: Path, table: RoutingTable, tmp_path: Path) -> None:
    for quantisation, arguments in (("nf4", "bnb_4bit_use_double_quant"), ("int8", "load_in_8bit")):
        held = replace(table, model=replace(table.model, quantisation=quantisation))
        (artifacts / "routes.json").write_text(to_json(held))
        export(artifacts, tmp_path / quantisation, "peft")
        assert json.loads((tmp_path / quantisation / "routes.json").read_text())["bitsandbytes"][arguments] is True
    with pytest.raises(BadData, match="holds its base in int8, and vLLM quantises one with bitsandbytes to nf4 alone; use --format peft"):
        export(artifacts, tmp_path / "vllm", "vllm")
    (artifacts / "routes.json").write_text(to_json(replace(held, model=replace(held.model, quantisation="nf4"))))
    export(artifacts, tmp_path / "vllm", "vllm")
    assert "--dtype float32 --quantization bitsandbytes \\\n" in (tmp_path / "vllm" / "serve.sh").read_text()
    provenance = Provenance(
        clusterlora_version="1", git_revision=None, data_digest="a", base_revision=held.base_revision, n_personas=3, n_dialogues=3
    )
    card = about(
        PreparedStudy(model=held.model), provenance, None, model=STUDY, method="hybrid", n_personas=3, weights_sha256={}, recipes=()
    ).card
    assert "its linear layers in int8 (bitsandbytes)" in card


def test_weights_with_another_digest_than_recorded_are_not_exported(artifacts: Path, table: RoutingTable, tmp_path: Path) -> None:
    digests = {key: weights_sha256(artifacts / "adapters" / key) for key in ("aaaa", "bbbb")}
    (artifacts / "routes.json").write_text(to_json(replace(table, weights_sha256=digests)))
    export(artifacts, tmp_path / "as recorded", "peft")
    multiply(artifacts / "adapters" / "bbbb")
    with pytest.raises(BadData, match=r"adapter bbbb has SHA-256 .*, recorded is"):
        export(artifacts, tmp_path / "out", "peft")
    assert not (tmp_path / "out").exists()


def multiply(folder: Path) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file({name: 100 * tensor for name, tensor in tensors.items()}, folder / "adapter_model.safetensors")


def test_models_that_need_more_than_an_adapter_are_not_exported(artifacts: Path, table: RoutingTable, tmp_path: Path) -> None:
    with_shots = replace(table, personas={"ann": KeyedComposition((KeyedAdapter("aaaa"),), shots=3)})
    (artifacts / "routes.json").write_text(to_json(with_shots))
    with pytest.raises(BadData, match="mlflow models serve"):
        export(artifacts, tmp_path / "out", "vllm")
    described = replace(table, model=replace(table.model, persona_in_prompt=True), personas={})
    (artifacts / "routes.json").write_text(to_json(described))
    with pytest.raises(BadData, match=r"model\.persona_in_prompt.*mlflow models serve"):
        export(artifacts, tmp_path / "out", "vllm")
    assert not (tmp_path / "out").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(BadData, match="not empty"):
        export(artifacts, tmp_path / "full", "vllm")


def test_a_model_card_lists_the_adapters_of_a_model_and_its_scores() -> None:
    provenance = Provenance(
        clusterlora_version="1", git_revision=None, data_digest="abc", base_revision=base_revision("homelm"), n_personas=12, n_dialogues=120
    )
    score = MethodScore(
        method="cluster",
        mean=0.8,
        mean_low=0.78,
        mean_high=0.82,
        difference=0.05,
        ci_low=0.03,
        ci_high=0.07,
        n_personas=12,
        n_items=60,
    )
    outcome = ComparisonSummary("cluster", "cluster beats unified.", (score,))
    tuned = Recipe(rank=32, alpha=64.0, epochs=6, learning_rate=2e-4)
    recipes = (tuned, tuned, Recipe(kind="prefix", rank=80))
    weights = {"aaaa": "f" * 64}
    won = about(
        PreparedStudy(), provenance, outcome, model="demo", method="cluster", n_personas=12, weights_sha256=weights, recipes=recipes
    )
    for words in (
        "licence apache-2.0",
        "`abc`, 12 personas",
        "80.00% [78.00, 82.00], +5.00 against unified [+3.00, +7.00]",
        "vllm",
        "peft",
        f"- **Weights**: SHA-256 `{'f' * 64}`\n",
        "- **Recipe**: lora, rank 32, alpha 64, 6 epochs, batch 2, learning rate 0.0002; prefix of 80 virtual tokens, 3 epochs, batch 2, ",
    ):
        assert words in won.card
    lost = about(PreparedStudy(), provenance, outcome, model="demo", method="unified", n_personas=12, weights_sha256={}, recipes=())
    assert (won.tags["comparison"], lost.tags["comparison"]) == ("passed", "failed")
    assert (won.promotable, lost.promotable) == (True, False)
    assert "found cluster best" in lost.tags["comparison_says"]


@pytest.mark.whole
@pytest.mark.filterwarnings("ignore:.*AnyType:UserWarning")
def test_only_the_best_compared_method_becomes_champion_unless_forced_with_a_reason(
    mlflow_server: str,
    table: RoutingTable,
    artifacts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from clusterlora.stores.mlflow_models import Registry
    from clusterlora.stores.mlflow_tracker import MlflowTracker

    tracker = MlflowTracker(mlflow_server)
    dialogue = Dialogue("d", (Turn("user", "hi"), Turn("assistant", "hello")), split="train")
    tracker.start_study(STUDY, params={}, tags={}, dataset=Dataset((Persona("ann", None, (dialogue,)),)))
    folders = {key: artifacts / "adapters" / key for key in ("aaaa", "bbbb")}
    lost = About("# card {version}", {"comparison": "failed", "comparison_says": "the comparison found cluster best."})
    tracker.register_router(STUDY, routes=plain(table), adapters=HeldAdapters(folders), champion=False, about=lost)
    registry = Registry(mlflow_server)
    version = registry.version(STUDY)
    assert (version.aliases, version.card, version.promotable) == ((), "# card 1", False), "what may not be promoted is no candidate"
    with pytest.raises(BadSettings, match="the comparison found cluster best"):
        registry.promote(version)
    assert "champion" not in registry.version(f"{STUDY}/1").aliases

    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    monkeypatch.setenv("CLUSTERLORA_STACK_HOME", str(tmp_path / "no-stack"))
    assert main(["registry", "promote", STUDY, "--force", "a demonstration"]) == 0
    assert registry.version(f"{STUDY}@champion").tags["promoted_by_force"] == "a demonstration"
    won = About("# card", {"comparison": "passed"})
    tracker.register_router(STUDY, routes=plain(table), adapters=HeldAdapters(folders), champion=False, about=won)
    registry.promote(registry.version(STUDY))

    capsys.readouterr()
    assert main(["registry", "list", "--study", STUDY, "--json"]) == 0
    (listed,) = json.loads(capsys.readouterr().out)
    assert (listed["version"], listed["aliases"], listed["tags"]["comparison"]) == ("1", ["candidate", "champion"], "passed")
    assert main(["registry", "export", f"{STUDY}@champion", "--out", str(tmp_path / "exported"), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["adapters"]) == 2
    with pytest.raises(UnknownName, match="no version 7"):
        registry.version(f"{STUDY}/7")


@pytest.mark.whole
@pytest.mark.filterwarnings("ignore:.*AnyType:UserWarning")
def test_the_champions_of_a_family_are_versions_of_one_model_and_a_rollback_goes_back_to_the_one_before(
    mlflow_server: str,
    table: RoutingTable,
    artifacts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from clusterlora.stores.mlflow_tracker import MlflowTracker

    tracker = MlflowTracker(mlflow_server)
    dialogue = Dialogue("d", (Turn("user", "hi"), Turn("assistant", "hello")), split="train")
    folders = {key: artifacts / "adapters" / key for key in ("aaaa", "bbbb")}
    assert tracker.champion("kin") is None
    for study in ("kin", "kin.r1", "kin.r2"):
        tracker.start_study(study, params={}, tags={}, dataset=Dataset((Persona("ann", None, (dialogue,)),)))
        root = None if study == "kin" else "kin"
        routes = plain(replace(table, study=study))
        for _ in range(2):
            tracker.register_router(study, routes=routes, adapters=HeldAdapters(folders), champion=True, root=root)
        assert tracker.champion("kin") == (study, table.method)
        assert [version.name for version in tracker.versions(study)] == ["kin"], "every study knows its own version"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    monkeypatch.setenv("CLUSTERLORA_STACK_HOME", str(tmp_path / "no-stack"))
    assert main(["registry", "rollback", "kin", "--because", "a bad week"]) == 0
    assert "kin version 2, of study kin.r1, is the champion again" in capsys.readouterr().out
    assert main(["registry", "rollback", "kin", "--because", "a bad month"]) == 0
    assert tracker.champion("kin") == ("kin", table.method)
    assert main(["registry", "history", "kin", "--json"]) == 0
    moves = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [(move["version"], move["study"], move["back"]) for move in moves] == [
        ("1", "kin", False),
        ("2", "kin.r1", False),
        ("3", "kin.r2", False),
        ("2", "kin.r1", True),
        ("1", "kin", True),
    ]
    assert moves[-1]["why"] == "a bad month"
    assert main(["registry", "rollback", "kin", "--because", "more"]) == 1
    assert "has had no champion before its present one" in capsys.readouterr().err
    assert main(["registry", "list", "--study", "kin", "--json"]) == 0
    assert {version["name"] for version in json.loads(capsys.readouterr().out)} == {"kin"}


@pytest.mark.whole
@pytest.mark.filterwarnings("ignore:.*AnyType:UserWarning")
@pytest.mark.parametrize("damage", ["weights", "routes"])
def test_files_that_were_changed_in_the_tracker_are_not_exported(
    damage: str,
    mlflow_server: str,
    table: RoutingTable,
    artifacts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from clusterlora.stores.mlflow_tracker import MlflowTracker

    study = f"tampered-{damage}"
    tracker = MlflowTracker(mlflow_server)
    dialogue = Dialogue("d", (Turn("user", "hi"), Turn("assistant", "hello")), split="train")
    run_id = tracker.start_study(study, params={}, tags={}, dataset=Dataset((Persona("ann", None, (dialogue,)),)))
    folders = {key: artifacts / "adapters" / key for key in ("aaaa", "bbbb")}
    recorded = replace(table, study=study, weights_sha256={key: weights_sha256(folder) for key, folder in folders.items()})
    tracker.register_router(study, routes=plain(recorded), adapters=HeldAdapters(folders), champion=True)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    monkeypatch.setenv("CLUSTERLORA_STACK_HOME", str(tmp_path / "no-stack"))
    assert main(["registry", "export", f"{study}@champion", "--out", str(tmp_path / "as registered")]) == 0
    (stored,) = mlflow_artifacts().glob(f"*/{run_id}/artifacts/models/{study}/*/artifacts")
    if damage == "weights":
        multiply(stored / "adapters" / "bbbb")
        problem = "adapter bbbb has SHA-256"
    else:
        swapped = replace(recorded, default=KeyedComposition((KeyedAdapter("bbbb"),)))
        (stored / "routes.json").write_text(to_json(swapped))
        problem = "its routes or the keys of its adapters differ"
    assert main(["registry", "export", f"{study}@champion", "--out", str(tmp_path / "out")]) == 1
    message = capsys.readouterr().err
    assert f"error: the files of {study} version 1 are not what was registered: {problem}" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.whole
def test_weights_with_another_digest_than_recorded_are_not_registered(artifacts: Path, table: RoutingTable, tmp_path: Path) -> None:
    from clusterlora.stores.mlflow_registry import write_model

    folders = {key: artifacts / "adapters" / key for key in ("aaaa", "bbbb")}
    recorded = replace(table, weights_sha256={key: weights_sha256(folder) for key, folder in folders.items()})
    multiply(folders["aaaa"])
    with pytest.raises(BadData, match="adapter aaaa has SHA-256"):
        write_model(tmp_path / "model", recorded, HeldAdapters(folders))
    assert not (tmp_path / "model").exists()
