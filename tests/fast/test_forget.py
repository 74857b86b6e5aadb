"""`persona forget`: what was planted in one person's dialogues is nowhere afterwards, and nobody's adapters have learned it."""

import importlib
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from clusterlora.cli import main
from clusterlora.errors import BadSettings, ServiceDown, UnknownName
from clusterlora.metadata import TrackerPage
from clusterlora.planning.study_state import read_state
from clusterlora.planning.work_plan import work_plan
from clusterlora.ports.stores import Stores
from clusterlora.pseudonyms import KEY_FILE, pseudonym
from clusterlora.recipe import Recipe
from clusterlora.settings import ClusteringSettings, DataSettings, EvaluationSettings, GateSettings, ModelSettings, Study
from clusterlora.stages.cluster import cluster_study
from clusterlora.stages.forget import certificates, forget, read_certificate, what_to_forget
from clusterlora.stages.forget_plan import Certificate
from clusterlora.stages.forgotten import UNFINISHED
from clusterlora.stages.prepare import prepare_study
from clusterlora.stages.remaining import run_remaining
from clusterlora.values import Clustering
from clusterlora.wiring import from_environment
from tests.fixtures.canaries import mean_exposure, traces, word
from tests.fixtures.session import shared_folder
from tests.fixtures.stages import LOG, Notes
from tests.fixtures.studies import copy_of_home, seven_people

# The function has the module's name.
stage = importlib.import_module("clusterlora.stages.forget")
persona_cli = importlib.import_module("clusterlora.cli.persona")

PEOPLE = [f"person-of-{name}" for name in ("rome", "oslo", "lima", "cairo", "quito")]
LEAVES = PEOPLE[1]
PERSONAL = "persona-0001"
N_DIALOGUES = 7


def canaries_of(person: str) -> list[str]:
    rng = random.Random(person)
    return [word(rng) for _ in range(N_DIALOGUES)]


def write_people(file: Path, people: list[str]) -> None:
    """Write people who answer with words that nobody else has."""
    file.write_text(
        "".join(
            json.dumps({"persona_id": person, "prompt": f"Say word {n}", "response": f"It is {one}."}) + "\n"
            for person in people
            for n, one in enumerate(canaries_of(person))
        )
    )


def small_study(base: Path, data: Path) -> Study:
    return replace(
        seven_people(base),
        name="leaving",
        methods=("unified", "cluster", "per_persona", "few_shot"),
        data=DataSettings(source="table", path=str(data), train=4, val=1, test=2),
        model=ModelSettings(base=str(base), max_length=1024),
        recipe=Recipe(rank=4, epochs=10, learning_rate=5e-3),
        clustering=ClusteringSettings(k=2),
        gate=GateSettings(ladder=(), on_failure="continue"),
        evaluation=EvaluationSettings(max_new_tokens=6, bootstrap_draws=100),
    )


@pytest.fixture
def home(tiny_base_folder: Path, tmp_path: Path) -> Path:
    """Return a folder of results with the finished study `leaving`."""

    def fill(folder: Path) -> None:
        data = folder / "people.jsonl"
        write_people(data, PEOPLE)
        stores = from_environment({"CLUSTERLORA_HOME": str(folder / "home")})
        study = small_study(tiny_base_folder, data)
        prepare_study(study, stores, LOG)
        stores.studies.save_clustering(study.name, Clustering("given", (tuple(PEOPLE[:3]), tuple(PEOPLE[3:]))))
        cluster_study(study.name, stores, LOG)
        run_remaining(study.name, stores, LOG)

    folder = shared_folder("study-of-one-who-leaves", fill)
    copy_of_home(folder / "home", tmp_path / "home")
    return tmp_path / "home"


@pytest.fixture
def stores(home: Path) -> Stores:
    return from_environment({"CLUSTERLORA_HOME": str(home)})


def leave(stores: Stores, **options: Any) -> Certificate:
    return read_certificate(forget(pseudonym(stores.home, LEAVES, make_key=True), stores, LOG, **options))


class KilledError(BaseException):
    pass


def killed(*_: object) -> None:
    raise KilledError


@pytest.mark.whole
def test_a_person_is_gone_from_every_byte_and_weight_though_the_command_was_killed_twice(
    home: Path, stores: Stores, tiny_base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = canaries_of(LEAVES)
    before = {adapter.name: adapter for adapter in stores.studies.adapters("leaving")}
    learned = [d.turns[-1].text for d in stores.studies.dataset("leaving").by_id()[LEAVES].of_split("train")]
    assert len(traces(home, *words)) >= 3, "database, results and report have them before"
    exposed, chance = mean_exposure(tiny_base_folder, stores.adapters.path(before["cluster-00"].key), learned, prompt="Say word 3")
    assert exposed > chance + 2, "what was planted has been learned, so the measure can show it"
    study, person = stores.studies.study("leaving"), pseudonym(home, LEAVES, make_key=True)
    expected = what_to_forget(person, stores)
    for broken in ((type(stores.studies), "scrub"), (stage, "run_remaining")):
        with monkeypatch.context() as patch:
            patch.setattr(*broken, killed)
            with pytest.raises(KilledError):
                leave(stores)
        assert list((home / UNFINISHED).iterdir())
        assert what_to_forget(person, stores).studies == expected.studies, "it still knows what it had set out to remove"
    certificate = leave(stores)

    assert not list((home / UNFINISHED).iterdir())
    assert traces(home, LEAVES, *words) == []
    assert traces(home, canaries_of(PEOPLE[0])[0]), "the others' words are still there"
    (done,) = certificate.studies
    after = {adapter.name: adapter for adapter in stores.studies.adapters("leaving")}
    assert not any(LEAVES in adapter.spec.persona_ids for adapter in after.values())
    assert {record.name for record in done.removed} == {"unified", "cluster-00", PERSONAL}
    assert {record.name for record in done.retrained} == {"unified", "cluster-00"}
    assert set(done.kept) == {a.key for a in before.values()} & {a.key for a in after.values()}, "who never shared one keeps their own"
    assert len(done.kept) == 5
    assert {a.persona_id for a in stores.studies.answers("leaving")} == {*PEOPLE} - {LEAVES}
    still, chance = mean_exposure(tiny_base_folder, stores.adapters.path(after["cluster-00"].key), learned, prompt="Say word 3")
    assert still < chance + 1.5

    (file,) = certificates(person, stores)
    for page in (file.read_text(), file.with_suffix(".md").read_text()):
        assert person in page
        assert all(adapter.key in page for adapter in (*done.removed, *done.retrained))

    write_people(tmp_path / "others.jsonl", [one for one in PEOPLE if one != LEAVES])
    prepare_study(replace(small_study(tiny_base_folder, tmp_path / "others.jsonl"), name="never"), stores, LOG)
    clustering = stores.studies.clustering("leaving")
    assert clustering is not None
    stores.studies.save_clustering("never", clustering)
    needed = set(work_plan(read_state("never", stores)).keys.values())
    assert needed == {a.key for a in after.values()}, "the adapters are those of a study in which the person never was"

    # The file of the data still has the person.
    assert LEAVES not in prepare_study(study, stores, Notes()).ids
    with pytest.raises(UnknownName, match="were forgotten before"):
        what_to_forget(person, stores)
    (home / KEY_FILE).unlink()
    with pytest.raises(BadSettings, match="the key to tell whom is not at"):
        prepare_study(study, stores, LOG)


def test_what_cannot_be_done_is_refused_before_anything_is_touched(home: Path, stores: Stores) -> None:
    with pytest.raises(UnknownName, match="no study has this person"):
        forget("0" * 64, stores, LOG)
    with pytest.raises(UnknownName, match="unknown study 'other'"):
        leave(stores, only=("other",))
    stores.studies.save_metadata("leaving", TrackerPage("http://127.0.0.1:5000/#/experiments/1"))
    with pytest.raises(ServiceDown, match="tracked by MLflow"):
        leave(stores)
    stores.studies.save_metadata("leaving", TrackerPage(None))
    stores.studies.set_status("leaving", "running")
    with pytest.raises(BadSettings, match="a study is running"):
        leave(stores)
    assert traces(home, *canaries_of(LEAVES))
    assert LEAVES in stores.studies.dataset("leaving").ids


def test_a_dry_run_says_what_would_go_and_how_long_it_takes_and_removes_nothing(
    home: Path, stores: Stores, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CLUSTERLORA_HOME", str(home))
    monkeypatch.setenv("CLUSTERLORA_STACK_HOME", str(home / "none"))
    assert main(["persona", "forget", LEAVES, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert f"digest {pseudonym(home, LEAVES)}" in shown
    assert f"study leaving: {N_DIALOGUES} dialogues" in shown
    assert "3 adapters, 2 of them shared with others" in shown
    assert "trained again without them: cluster-00, unified" in shown
    assert "of work by what it took before" in shown
    assert LEAVES in stores.studies.dataset("leaving").ids
    assert main(["persona", "forget", "nobody"]) == 1
    assert main(["persona", "forget"]) == 2


def test_an_installed_wheel_has_no_servers_to_clear(monkeypatch: pytest.MonkeyPatch) -> None:
    def raises() -> Path:
        raise ServiceDown("only the wheel is installed")

    monkeypatch.setattr(persona_cli, "services_home", raises)
    assert persona_cli._services() is None
