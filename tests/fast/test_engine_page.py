"""README, docs/engine.md and docs/engine.ipynb are true: the code that they show runs, and the kinds that they add work."""

import json
import re
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from clusterlora import engine
from clusterlora.engine import ADAPTER_KINDS, AdapterJob, AdapterKind, Recipe, TrainingProgress, generate, train_adapters

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = (REPOSITORY / "docs" / "engine.md").read_text(encoding="utf-8")
PYTHON = re.compile(r"```python\n(.*?)```", re.DOTALL)
QUESTION = [{"role": "user", "content": "light"}]
DIALOGUES = [[*QUESTION, {"role": "assistant", "content": f"Set to {i}."}] for i in range(4)]
RECIPE = Recipe(rank=4, alpha=6, dropout=0.0, epochs=6, learning_rate=1e-2)


def quiet(_progress: TrainingProgress) -> None:
    pass


def run(code: str, base: Path, monkeypatch: pytest.MonkeyPatch, folder: Path) -> dict[str, Any]:
    """Run code in a folder, with a local model in the place of the hub's; return what it defines."""
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    exec(compile(code.replace("Qwen/Qwen2.5-0.5B-Instruct", str(base)), "documentation", "exec"), names)
    return names


@pytest.mark.whole
def test_the_lines_of_readme_train_100_adapters_and_answer_with_them(
    tiny_base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = PYTHON.findall((REPOSITORY / "README.md").read_text(encoding="utf-8"))
    names = run(code, tiny_base_folder, monkeypatch, tmp_path)
    assert len(list(tmp_path.glob("adapters/*/adapter_model.safetensors"))) == len(names["answers"]) == 100


@pytest.mark.whole
def test_the_example_of_the_page_trains_two_kinds(tiny_base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = run(PYTHON.findall(PAGE)[0], tiny_base_folder, monkeypatch, tmp_path)
    assert [adapter.job.recipe.kind for adapter in names["adapters"]] == ["lora", "rslora"]
    assert len(names["answers"]) == 2


@pytest.mark.whole
def test_the_notebook_runs_and_its_people_are_answered_by_their_own_adapters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = json.loads((REPOSITORY / "docs" / "engine.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(not cell.get("outputs") for cell in notebook["cells"]), "it is stored without outputs"
    names = run("\n".join(cells), tmp_path, monkeypatch, tmp_path)
    assert all(f"friend {i}" in answer for i, answer in enumerate(names["answers"][:-1]))
    assert "friend" not in names["answers"][-1], "the base knows nobody"


@pytest.fixture
def kinds_of_the_page(monkeypatch: pytest.MonkeyPatch) -> dict[str, AdapterKind]:
    names: dict[str, Any] = {}
    for code in PYTHON.findall(PAGE)[1:]:
        exec(compile(code, "docs/engine.md", "exec"), names)
    added = {kind.name: kind for kind in (names["Loha"](), names["UnscaledLora"]())}
    for name, kind in added.items():
        monkeypatch.setitem(ADAPTER_KINDS, name, kind)
    return added


@pytest.mark.whole
@pytest.mark.numeric
def test_a_kind_that_only_peft_knows_is_trained_resumed_and_asked_like_the_others(
    kinds_of_the_page: dict[str, AdapterKind], tiny_base_folder: Path, tmp_path: Path
) -> None:
    assert "loha" in kinds_of_the_page
    jobs = [AdapterJob(f"{kind}-{i}", DIALOGUES, replace(RECIPE, kind=kind, seed=i)) for kind in ("loha", "lora") for i in range(2)]
    results = train_adapters(tiny_base_folder, jobs, folder=tmp_path, progress=quiet)
    assert all(result.loss_fell for result in results)
    answers = generate(tiny_base_folder, [QUESTION] * 4, adapters=results, max_new_tokens=6)
    for result, answer in zip(results, answers, strict=True):
        assert generate(tiny_base_folder, [QUESTION], adapters=[result], max_new_tokens=6) == [answer]
    again = train_adapters(tiny_base_folder, jobs[:1], folder=tmp_path / "again", progress=quiet)
    one, other = (load_file(result.folder / "adapter_model.safetensors") for result in (results[0], again[0]))
    assert all(torch.equal(one[name], other[name]) for name in one), "its random start depends on the recipe's seed alone"


@pytest.mark.whole
@pytest.mark.numeric
def test_a_variant_of_lora_shares_its_slots_and_is_what_peft_reads(
    kinds_of_the_page: dict[str, AdapterKind], tiny_base_folder: Path, tmp_path: Path
) -> None:
    assert kinds_of_the_page["unscaled_lora"].slot_group(RECIPE) == ADAPTER_KINDS["lora"].slot_group(RECIPE)
    jobs = [
        AdapterJob("unscaled", DIALOGUES, replace(RECIPE, kind="unscaled_lora", alpha=2.0)),
        AdapterJob("lora", DIALOGUES, replace(RECIPE, alpha=8.0)),
    ]
    unscaled, lora = train_adapters(tiny_base_folder, jobs, folder=tmp_path, progress=quiet)
    assert unscaled.losses == pytest.approx(lora.losses, rel=1e-5), "alpha = 2 at every rank is alpha / r = 8 / 4"
    ids = torch.tensor([[1, 5, 9, 2]])
    logits = [
        PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_base_folder), str(result.folder))(input_ids=ids).logits
        for result in (unscaled, lora)
    ]
    assert torch.allclose(logits[0], logits[1], atol=1e-3)


def test_the_reference_names_everything_public() -> None:
    page = (REPOSITORY / "docs" / "reference" / "engine.md").read_text(encoding="utf-8")
    links = dict(re.findall(r"^\| \[`(\w+)`\]\[([\w.]+)\]", page, re.MULTILINE))
    assert links.keys() == set(engine.__all__)
    for name, path in links.items():
        module, _, last = path.rpartition(".")
        assert getattr(engine, name) is getattr(import_module(path if last == "kinds" else module), name), path
