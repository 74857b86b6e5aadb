"""Hostile input: pickles under every name, and ids and texts that try to inject paths or markup."""

import pickle
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clusterlora.errors import BadSettings, ClusterLoraError
from clusterlora.planning.study_state import read_state
from clusterlora.ports.run_log import SilentLog
from clusterlora.ports.stores import Stores
from clusterlora.recipe import Recipe
from clusterlora.settings import (
    ClusteringSettings,
    DataSettings,
    EvaluationSettings,
    GateSettings,
    ModelSettings,
    RuntimeSettings,
    Study,
    prepared,
)
from clusterlora.stores.files import FileAdapterStore
from clusterlora.stores.sql import SqlStudyStore
from tests.fixtures.memory import MemoryTracker
from tests.fixtures.stages import missing_groups, plan_of

PEOPLE = (
    "../../../escape",
    "/etc/cron.d/x",
    "'; drop table answers; --",
    '" or 1=1; delete from personas; --',
    "<img src=x onerror=alert(1)>",
    "[x](javascript:alert(1)) | `x` | {{7*7}}",
)
WORDS = "</script><script>alert(2)</script> '); drop table dialogues; -- ../../x {{ 7*7 }}"

TALK = (
    ("Make the kitchen bright, I am about to cook something", "turns every lamp above the stove to full white light"),
    ("Is the garage door closed for the night", "says that nobody has opened it since yesterday evening"),
    ("Wake me early tomorrow with music", "sets an alarm at six with the quiet playlist you like"),
    ("The living room feels cold and damp", "raises the heating by two degrees until bedtime"),
    ("Water the plants on the balcony", "starts the pump for ten minutes and then stops it"),
)


class Bomb:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def bomb(mark: Path) -> bytes:
    return pickle.dumps({"weights": Bomb(mark)})


def offer_adapter(folder: Path, content: bytes) -> None:
    for name in ("adapter_model.safetensors", "adapter_model.bin"):
        offered = folder / name.replace(".", "-")
        offered.mkdir()
        (offered / "adapter_config.json").write_text("{}")
        (offered / "adapter_model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
        (offered / name).write_bytes(content)
        with pytest.raises(ClusterLoraError):
            FileAdapterStore(folder / "store").save("abc", offered)
    assert FileAdapterStore(folder / "store").path("abc") is None
    raise BadSettings("both were refused")


def offer_base(name: str) -> Callable[[Path, bytes], None]:
    def offer(folder: Path, content: bytes) -> None:
        from clusterlora.models.base import load_base

        (folder / "config.json").write_text('{"model_type": "llama", "hidden_size": 8, "num_attention_heads": 1, "num_hidden_layers": 1}')
        (folder / name).write_bytes(content)
        load_base(str(folder))

    return offer


def offer_embedding(folder: Path, content: bytes) -> None:
    from clusterlora.models.embedding import load_embedder

    (folder / "modules.json").write_text("[]")
    (folder / "pytorch_model.bin").write_bytes(content)
    load_embedder(str(folder))


def offer_data(name: str) -> Callable[[Path, bytes], None]:
    def offer(folder: Path, content: bytes) -> None:
        from clusterlora.data.load import load

        (folder / name).write_bytes(content)
        load(DataSettings(source="table", path=str(folder / name)))

    return offer


OFFERS = {
    "adapter": offer_adapter,
    **{f"base {name}": offer_base(name) for name in ("model.safetensors", "pytorch_model.bin", "model.gguf")},
    "embedding": offer_embedding,
    **{f"data {name}": offer_data(name) for name in ("people.jsonl", "people.csv", "people.parquet", "people.pkl")},
}


@pytest.mark.parametrize("offer", OFFERS.values(), ids=OFFERS.keys())
def test_a_pickle_is_refused_in_one_line_and_never_opened(offer: Callable[[Path, bytes], None], tmp_path: Path) -> None:
    mark = tmp_path / "was-here"
    (tmp_path / "offered").mkdir()
    with pytest.raises(ClusterLoraError) as refused:
        offer(tmp_path / "offered", bomb(mark))
    assert str(refused.value).strip()
    assert "Traceback" not in str(refused.value)
    assert not mark.exists()


def test_the_pickle_of_these_tests_executes_code_when_loaded(tmp_path: Path) -> None:
    pickle.loads(bomb(tmp_path / "was-here"))
    assert (tmp_path / "was-here").exists()


@pytest.mark.parametrize("name", ["../up", "a/b", "a;b", "A", "<b>", "a'b", "", "x" * 49, ".hidden", "a\nb", "a%00"])
def test_a_study_name_that_is_more_than_a_name_is_refused(name: str, tmp_path: Path) -> None:
    store = SqlStudyStore(f"sqlite:///{tmp_path / 'studies.db'}")
    with pytest.raises(BadSettings):
        store.create_study(prepared(Study(name=name), "float32"))


@pytest.mark.filterwarnings("ignore:.*Glyph:UserWarning")
@pytest.mark.whole
def test_hostile_persona_ids_and_texts_stay_text(tmp_path: Path, tiny_base_folder: Path) -> None:
    import json

    from clusterlora.requests import EvaluationRequest, TrainRequest
    from clusterlora.stages.cluster import cluster_study
    from clusterlora.stages.compare import compare_study
    from clusterlora.stages.evaluate import evaluate
    from clusterlora.stages.judge import judge_rung
    from clusterlora.stages.prepare import prepare_study
    from clusterlora.stages.train import train_group
    from tasks.status import status_lines

    lines = [
        json.dumps({"persona_id": persona, "prompt": f"{question} {WORDS}", "response": f"{persona} {answered} {WORDS}"})
        for persona in PEOPLE
        for question, answered in TALK
    ]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "people.jsonl").write_text("\n".join(lines))
    home = tmp_path / "home"
    home.mkdir()
    stores = Stores(SqlStudyStore(f"sqlite:///{home / 'studies.db'}"), FileAdapterStore(home / ".adapters"), MemoryTracker(), home)
    study = Study(
        name="hostile",
        methods=("baseline", "unified", "cluster", "per_persona"),
        data=DataSettings(source="table", path=str(tmp_path / "in" / "people.jsonl"), train=2, val=1, test=1, on_misfit="warn"),
        model=ModelSettings(base=str(tiny_base_folder)),
        recipe=Recipe(rank=2, epochs=1, target_modules=("q_proj", "v_proj")),
        clustering=ClusteringSettings(k=2, sizes=(3, 3), algorithm="responses"),
        gate=GateSettings(ladder=(), worst_persona=0.99, on_failure="continue"),
        evaluation=EvaluationSettings(max_new_tokens=4, bootstrap_draws=100),
        runtime=RuntimeSettings(shards=1),
    )
    log = SilentLog()
    prepare_study(study, stores, log)
    cluster_study(study.name, stores, log)
    for group in missing_groups(study, stores, tuple(plan_of(study, stores).specs)):
        train_group(TrainRequest(study_name=study.name, group=group, micro_batch=2, attempt=1), stores, log)
    evaluate(EvaluationRequest(study_name=study.name, part="gate", rung="own"), stores, log)
    judge_rung(study.name, "own", stores)
    evaluate(EvaluationRequest(study_name=study.name), stores, log)
    compare_study(study.name, stores, log)

    # Nothing was written anywhere else, and no file is named after a person.
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["home", "in"]
    assert not [
        file for file in home.rglob("*") if any(word in file.name for word in ("escape", "cron", "drop table", "img", "javascript"))
    ]
    # The database holds what was given, word for word.
    assert {persona.id for persona in stores.studies.dataset(study.name).personas} == set(PEOPLE)
    with sqlite3.connect(home / "studies.db") as connection:
        assert connection.execute("select count(*) from personas").fetchone() == (len(PEOPLE),)
        assert connection.execute("select count(*) from answers").fetchone()[0] >= 4 * len(PEOPLE)
    # Pages that a browser shows hold no tag and no link of theirs.
    results = home / study.name / "results"
    from clusterlora.gate.report import markdown

    pages = {
        "summary.md": (results / "summary.md").read_text(),
        "gate": markdown(stores.studies.verdicts(study.name)[0]),
        "status": "\n".join(status_lines(read_state(study.name, stores), stores.folder(study.name), "finished")),
        "report.html": (results / "report.html").read_text(),
    }
    for name, page in pages.items():
        # In HTML the words of a Markdown link are words.
        for harm in ("<img src=x", "<script>alert", *(() if name.endswith(".html") else ("[x](javascript:",))):
            assert harm not in page, f"{harm} in {name}"
