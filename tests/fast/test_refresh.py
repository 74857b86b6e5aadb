"""A refresh: new dialogues join their people, adapters with news go on, and the champion moves or stays."""

import importlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner

import flows.refresh as refresh_flow
from clusterlora.clustering.features import Sources
from clusterlora.clustering.regroup import Regrouped, regroup
from clusterlora.comparison.move import decide
from clusterlora.config import check
from clusterlora.data.refresh import joined
from clusterlora.data.source import SourceData
from clusterlora.data.synthetic import generate
from clusterlora.errors import BadSettings, NothingNew
from clusterlora.metadata import ChampionAdapter, RefreshOutcome
from clusterlora.planning.family import champions, family, lineage
from clusterlora.planning.ladder import decided_rung, rung_by_name, worth_trying
from clusterlora.planning.study_state import read_state
from clusterlora.planning.training_groups import remaining_groups
from clusterlora.planning.work_plan import work_plan
from clusterlora.ports.stores import Stores
from clusterlora.progress.timeline import against_unified, next_step
from clusterlora.requests import RefreshRequest
from clusterlora.settings import DataSettings, PreparedStudy, Rung, Study
from clusterlora.stages.compare import compare_study
from clusterlora.stages.prepare import prepare_study
from clusterlora.stages.refresh import due, next_refresh
from clusterlora.stages.register import register_models
from clusterlora.stores.champion_history import Move, before
from clusterlora.values import Dataset, Dialogue, Persona, Turn
from tests.fixtures.comparison import compared, evaluation
from tests.fixtures.memory import MemoryTracker
from tests.fixtures.stages import LOG, run
from tests.fixtures.studies import compared_stores, copy_of_stores

# The package has the command under the module's name.
refresh_cli = importlib.import_module("clusterlora.cli.refresh")


def write(path: Path, dialogues: Mapping[str, Sequence[Dialogue]]) -> str:
    """Write dialogues of people as a table of whole conversations; return its path."""
    rows = [
        {"persona_id": p, "messages": [{"role": t.role, "text": t.text} for t in one.turns], "context": dict(one.context)}
        for p, its in dialogues.items()
        for one in its
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def later(study: Study, seed: int = 5) -> dict[str, tuple[Dialogue, ...]]:
    """Return what the study's people say later."""
    return {person.id: person.dialogues for person in generate(replace(study.data.synthetic, seed=seed)).dataset.personas}


def more(study: Study, path: Path) -> str:
    """Write what two people of the study and somebody new say; return the file's path."""
    said = later(study)
    return write(path, {"persona_000": said["persona_000"], "persona_001": said["persona_001"][:5], "new": said["persona_005"]})


def end(study: Study, stores: Stores) -> None:
    run(study, stores)
    compare_study(study.name, stores, LOG)
    register_models(study.name, stores, LOG)


@pytest.fixture
def refreshed(seven: Study, tmp_path: Path) -> tuple[PreparedStudy, Stores]:
    """Return a refresh of seven people, one cluster of whom has news, that was run to its end, and its stores."""

    def fill(stores: Stores) -> None:
        from tests.fixtures.stages import crown

        crown(seven.name, stores, champion="cluster")
        register_models(seven.name, stores, LOG)
        end(next_refresh(seven.name, more(seven, stores.home.parent / "more.jsonl"), stores), stores)

    stores = copy_of_stores("refreshed-study", fill, tmp_path, begin=compared_stores)
    study = stores.studies.study("small.r1")
    return study, stores


@pytest.mark.whole
def test_only_adapters_whose_people_have_news_are_trained_and_with_old_dialogues_replayed(refreshed: tuple[PreparedStudy, Stores]) -> None:
    study, stores = refreshed
    state, first = read_state(study.name, stores), read_state("small", stores)
    plan = work_plan(state)
    labels = {"unified", "cluster-00", "cluster-01"}
    own = {spec.label: spec for spec in plan.specs.values() if spec.label in labels}
    before = {spec.label: first_key for spec, first_key in ((adapter.spec, adapter.key) for adapter in first.adapters)}
    news = dict(state.news.dialogues) if state.news else {}
    with_news = {label for label, spec in own.items() if set(spec.persona_ids) & news.keys()}
    assert with_news >= {"unified"}
    people = state.dataset.by_id()
    for label, spec in own.items():
        if label not in with_news:
            assert spec.kept == plan.keys[spec.name] == before[label]
            continue
        learnt = {(p, one) for p, ids in spec.learns_from for one in ids}
        train = {(p, d.id) for p in spec.persona_ids for d in people[p].of_split("train")}
        new = {(p, one) for p, one in train if one in news.get(p, ())}
        assert new <= learnt <= train
        assert len(learnt - new) == min(len(new), len(train - new)), "half of what is learnt is old, as far as there is enough"
        assert plan.keys[str(spec.init_from)] == before[label]
    trained = {name for attempt in state.attempts for name in (attempt.group,)}
    assert not remaining_groups(state)
    assert trained, "something was trained"
    keys_before = {adapter.key for adapter in first.adapters}
    assert {a.spec.label for a in state.adapters if a.key not in keys_before} == with_news
    end(study, stores)
    assert read_state(study.name, stores).attempts == state.attempts, "launched again it trains nothing"


def test_champion_and_challenger_are_compared_on_new_items_with_the_old_ones_beside(refreshed: tuple[PreparedStudy, Stores]) -> None:
    study, stores = refreshed
    state = read_state(study.name, stores)
    assert state.news is not None
    assert state.moved is not None
    new = {(p, one) for p, ids in state.news.dialogues for one in ids}
    seen = {(p.id, d.id) for p in stores.studies.dataset("small").personas for d in p.dialogues}
    assert not new & seen
    tested = [(p.id, d.id) for p in state.dataset.personas for d in p.of_split("test")]
    assert sum(one in new for one in tested) == sum(one in seen for one in tested) > 0
    summary = (stores.folder(study.name) / "results" / "summary.md").read_text()
    for words in (
        "## What the refresh found",
        "cluster of study small",
        "| new people | 1",
        "on old items (forgetting)",
        "drift of people",
        "went on with news, 50% of what they learnt replayed",
    ):
        assert words in summary
    assert "What is new" in (stores.folder(study.name) / "results" / "report.html").read_text()
    assert not state.moved.moved, "three people are too few for a verdict"
    assert isinstance(stores.tracker, MemoryTracker)
    assert stores.tracker.champion("small") == ("small", "cluster")
    # What is starred, answers and is told is the champion that serves, and differences are to it.
    assert "| last_champion ★" in summary
    assert summary.startswith(f"**The champion stays: {state.moved.reason}. ")
    assert "No verdict, as " in summary
    recorded = json.loads((stores.folder(study.name) / "results" / "summary.json").read_text())
    assert recorded["champion"] == "last_champion"
    assert {method["outcome"] for method in recorded["methods"]} == {None, "too few"}
    assert state.outcome is not None
    assert state.outcome.reference == "last_champion"
    assert not state.outcome.claims_personalisation
    on_test = [line for line in against_unified(state) if line.startswith("on test")]
    assert on_test
    assert all(" against last_champion [" in line for line in on_test)
    assert next_step(state) == f"Nothing: the refresh is finished, and the champion stays: {state.moved.reason}."


def test_a_refresh_trains_by_the_rung_of_the_champion_even_if_that_was_a_persons_retry(refreshed: tuple[PreparedStudy, Stores]) -> None:
    study, stores = refreshed
    state = read_state(study.name, stores)
    assert state.start is not None
    retry = Rung(name="asked-1", epochs=6)
    state = replace(state, start=replace(state.start, rung=retry))
    assert decided_rung(state) == rung_by_name(state, "asked-1") == retry
    assert worth_trying(state) == worth_trying(read_state(study.name, stores)), "its own gate tries what it tried"


@pytest.mark.whole
def test_a_champion_that_moves_is_a_version_of_the_first_studys_model_and_the_next_refresh_goes_on_from_it(
    refreshed: tuple[PreparedStudy, Stores], seven: Study, tmp_path: Path
) -> None:
    study, stores = refreshed
    state = read_state(study.name, stores)
    assert state.moved is not None
    assert state.outcome is not None
    stores.studies.save_metadata(study.name, replace(state.moved, moved=True))
    stores.studies.save_metadata(study.name, replace(state.outcome, champion="cluster"))
    assert register_models(study.name, stores, LOG) == "models:/small/2"
    assert stores.tracker.champion("small") == ("small.r1", "cluster")
    said = later(seven, seed=9)
    second = next_refresh("small", write(tmp_path / "again.jsonl", {"persona_006": said["persona_006"]}), stores)
    assert (second.name, second.refresh.champion, second.refresh.of) == ("small.r2", "small.r1", "small.r1")
    with pytest.raises(BadSettings, match="refresh that one: clusterlora study refresh small"):
        next_refresh("small.r1", "more.jsonl", stores)
    end(second, stores)
    after = read_state(second.name, stores)
    assert after.news is not None
    assert [p for p, _ in after.news.dialogues] == ["persona_006"], "what the champion has seen is no news"
    assert family("small", stores) == ("small", "small.r1", "small.r2")
    assert lineage("small.r2", stores) == ("small.r2", "small.r1", "small")
    assert [sentence.partition(",")[0] for sentence in champions("small", stores)][:2] == [
        "small: cluster",
        "small.r1: the champion moves to cluster",
    ]
    assert due("small", str(tmp_path / "again.jsonl"), stores) is None


def test_a_file_without_news_is_refused_and_an_interrupted_refresh_is_ended_first(
    refreshed: tuple[PreparedStudy, Stores], seven: Study, tmp_path: Path
) -> None:
    study, stores = refreshed
    path = more(seven, tmp_path / "more.jsonl")
    with pytest.raises(NothingNew, match=r"21 dialogues read, 0 of them new; 21 dialogues stood there already"):
        prepare_study(next_refresh("small", path, stores), stores, LOG)
    stores.studies.set_status(study.name, "failed")
    with pytest.raises(BadSettings, match="has not ended"):
        next_refresh("small", path, stores)
    assert due("small", path, stores) == study


def dialogue(name: str, question: str, answer: str, split: str | None = None) -> Dialogue:
    return Dialogue(name, (Turn("user", question), Turn("assistant", answer)), split=split)  # pyrefly: ignore[bad-argument-type]


QUESTIONS = ("dim the lamp", "open some window", "wake me early", "play soft music", "lock every door", "heat up our kitchen", "feed a cat")


def test_new_dialogues_join_their_people_and_what_stood_there_counts_once() -> None:
    old = Persona(
        "ana", None, (dialogue("1", "start", "a", "train"), dialogue("2", "middle", "b", "val"), dialogue("3", "finish", "c", "test"))
    )
    other = Persona(
        "ben",
        None,
        tuple(dialogue(str(i), f"ben asks {q}", "no", s) for i, (q, s) in enumerate(zip("xyz", ("train", "val", "test"), strict=True))),
    )
    fresh = tuple(dialogue(str(i), question, f"answer {i}") for i, question in enumerate(QUESTIONS))
    again = dialogue("9", "finish", "c")
    nearly = dialogue("10", "Finish!", "C")
    cara = Persona("cara", "new here", (dialogue("1", "who are you", "cara's house"),))
    read = SourceData(Dataset((replace(old, dialogues=(*fresh, again, nearly, fresh[0])), cara)))
    result = joined(Dataset((old, other)), read, DataSettings(), revision="r1")
    ana, ben, new = result.dataset.personas
    assert (result.n_read, result.n_repeated, result.n_left_out, result.newcomers) == (11, 2, 0, ("cara",))
    assert ben == other
    assert ana.dialogues[:3] == old.dialogues
    assert [d.id for d in ana.dialogues[3:]] == ["0", "r1-1", "r1-2", "r1-3", "4", "5", "6", "10"], "ids that are taken are told apart"
    assert ana.dialogues[-1].split == "test", "what nearly repeats a test dialogue is one"
    counts = {split: len([d for d in ana.dialogues[3:-1] if d.split == split]) for split in ("train", "val", "test")}
    assert counts == {"train": 4, "val": 1, "test": 2}
    assert [d.split for d in new.dialogues] == ["train"], "one or two dialogues are learnt"
    assert "2 dialogues stood there already" in "; ".join(result.sentences)


@pytest.mark.parametrize(
    ("challenger", "noise", "moved", "words"),
    [
        (0.90, 0.01, True, "is shown to be better"),
        (0.799, 0.005, True, "is not worse by 1.00 points"),
        (0.799, 0.3, False, "is not shown"),
        (0.795, 0.001, False, "is shown to be worse on new items"),
    ],
)
def test_the_champion_moves_to_what_is_better_or_no_worse_within_the_margin(
    challenger: float, noise: float, moved: bool, words: str
) -> None:
    rows = evaluation({"last_champion": 0.80, "unified": 0.5, "cluster": challenger}, noise=noise)
    outcome = decide(compared(rows, reference="last_champion", floor=None), None, "cluster")
    assert (outcome.moved, outcome.challenger) == (moved, "cluster")
    assert words in outcome.reason


def test_with_few_people_the_champion_stays() -> None:
    rows = evaluation({"last_champion": 0.80, "cluster": 0.95}, sizes=(3, 2), noise=0.01)
    assert decide(compared(rows, reference="last_champion", floor=None), None, "cluster") == RefreshOutcome(
        moved=False,
        challenger="cluster",
        reason="too few new items of too few people for a verdict",
        on_new=decide(compared(rows, reference="last_champion", floor=None), None, "cluster").on_new,
        on_old=None,
    )


def test_rolling_back_twice_goes_back_by_two() -> None:
    moves = tuple(Move(version, "", "") for version in "123")
    assert before(moves) == "2"
    moves = (*moves, Move("2", "", "", back=True))
    assert before(moves) == "1"
    assert before((*moves, Move("1", "", "", back=True))) is None
    assert before((*moves, Move("4", "", ""))) == "2", "what was left by a rollback is not returned to"


def test_the_champion_of_before_is_asked_for_in_a_refresh_alone(seven: Study) -> None:
    with pytest.raises(BadSettings, match="last_champion is in a refresh alone"):
        check(replace(seven, methods=("unified", "last_champion")))


def test_with_few_dialogues_somebody_is_answered_by_a_mixture_with_their_clusters_adapter(refreshed: tuple[PreparedStudy, Stores]) -> None:
    study, stores = refreshed
    state = read_state(study.name, stores)

    def arms(own_adapter_from: int) -> dict[str, list[dict[str, float]]]:
        refresh = replace(study.refresh, own_adapter_from=own_adapter_from)
        settings = replace(study, methods=("last_champion", "unified", "cluster", "per_persona"), refresh=refresh)
        plan = work_plan(replace(state, settings=settings))
        labels = {name: spec.label for name, spec in plan.specs.items()}
        return {
            p: [{labels[one.name]: one.weight for one in arm.adapters} for arm in compositions]
            for p, compositions in plan.methods["per_persona"].arms_by_persona
        }

    assert arms(1)["new"] == [{"persona-0007": 1.0}]
    members = state.clustering.cluster_by_persona() if state.clustering else {}
    mine = f"cluster-{members['new']:02d}"
    assert arms(100)["new"] == [
        {mine: 1.0},
        {mine: 0.75, "persona-0007": 0.25},
        {mine: 0.5, "persona-0007": 0.5},
        {mine: 0.25, "persona-0007": 0.75},
        {"persona-0007": 1.0},
    ]


def test_an_adapter_that_is_kept_answers_on_the_adapter_that_it_was_trained_on(refreshed: tuple[PreparedStudy, Stores]) -> None:
    study, stores = refreshed
    state = read_state(study.name, stores)
    assert state.start is not None
    assert state.news is not None
    settings = replace(study, methods=("last_champion", "unified", "hybrid"))
    fresh = work_plan(replace(state, settings=settings))
    residuals = tuple(
        ChampionAdapter(spec.label, f"key of {spec.label}", replace(spec, init_from=None))
        for spec in fresh.methods["hybrid"].adapters
        if spec.scope == "person" and spec.persona_ids != ("new",)
    )
    start = replace(state.start, adapters=(*state.start.adapters, *residuals))
    plan = work_plan(replace(state, settings=settings, start=start))
    with_news = dict(state.news.dialogues)
    for persona_id, compositions in plan.methods["hybrid"].arms_by_persona:
        unified = {arm.adapters[0].name for arm in compositions if len(arm.adapters) > 1}
        (residual,) = {arm.adapters[1].name for arm in compositions if len(arm.adapters) > 1}
        if persona_id in with_news:
            assert unified == {"unified"}
            assert plan.specs[residual].frozen_adapter == "unified"
        else:
            assert unified == {"last-unified"}
            assert plan.keys[residual] == f"key of {residual}"


class Words:
    """A text is how often it has each letter, of unit length."""

    name, revision = "letters", "1"

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        counts = np.array([[1 + text.lower().count(letter) for letter in "abcdefghijklmnopqrstuvwxyz"] for text in texts], dtype=np.float32)
        return counts / np.linalg.norm(counts, axis=1, keepdims=True)


def test_new_people_join_the_nearest_cluster_and_who_has_drifted_is_named() -> None:
    def speaks(name: str, words: str) -> Persona:
        return Persona(name, None, tuple(dialogue(str(i), f"question {i}", f"{words} {i}", "train") for i in range(4)))

    quiet, loud = "of course, softly and gladly", "NO! NEVER! GO AWAY"
    people = [speaks(name, quiet) for name in "abc"] + [speaks(name, loud) for name in "def"] + [speaks("new", loud), speaks("late", quiet)]
    members = (("a", "b", "c", "f"), ("d", "e"))
    found = regroup(Dataset(tuple(people)), "responses", members, Sources(Words()), news={}, rng=np.random.default_rng(0))
    assert found.moved == (("f", 0, 1),), "f says what the other cluster says, and stays until everybody is clustered anew"
    assert found.clustering.members == (("a", "b", "c", "f", "late"), ("d", "e", "new"))


def test_who_talks_otherwise_by_now_has_drifted_though_most_that_they_said_is_as_before() -> None:
    quiet, loud = "of course, softly and gladly", "NO! NEVER! GO AWAY"

    def speaks(name: str, *words: str) -> Persona:
        return Persona(name, None, tuple(dialogue(str(i), f"question {i}", f"{one} {i}", "train") for i, one in enumerate(words)))

    old = {**dict.fromkeys("abcd", quiet), **dict.fromkeys("efgh", loud)}
    changed = {"a": loud, "b": loud}
    people = [speaks(name, *[words] * 30, *[changed.get(name, words)] * 10) for name, words in old.items()]
    members = (tuple("abcd"), tuple("efgh"))

    def found(news: dict[str, tuple[str, ...]]) -> Regrouped:
        return regroup(Dataset(tuple(people)), "responses", members, Sources(Words()), news=news, rng=np.random.default_rng(0))

    last = tuple(map(str, range(30, 40)))
    cases: tuple[dict[str, tuple[str, ...]], ...] = (dict.fromkeys(old, last), {"a": last[5:]}, {})
    for news in cases:
        drifted = found(news)
        assert drifted.moved == (("a", 0, 1), ("b", 0, 1)), "whether it is new to the champion or not"
        assert drifted.changed == {"a": frozenset(last), "b": frozenset(last)}
        assert drifted.clustering.members == members
    assert found(dict.fromkeys(old, tuple(map(str, range(40))))).changed == {}, "where all is new, nothing is known of before"


def test_who_is_known_to_have_changed_does_not_stand_for_the_cluster_of_before() -> None:
    quiet, loud = "of course, softly and gladly", "NO! NEVER! GO AWAY"

    def speaks(name: str, quiet_ones: Collection[int]) -> Persona:
        said = [f"{quiet if i in quiet_ones else loud} {i}" for i in range(20)]
        return Persona(name, None, tuple(dialogue(str(i), f"question {i}", one, "train") for i, one in enumerate(said)))

    people = [speaks("c", range(1, 20, 3)), *(speaks(one, range(20)) for one in "defg"), *(speaks(one, ()) for one in "abhi")]
    members = (tuple("abcdefg"), tuple("hi"))

    def moved(changed_before: tuple[str, ...]) -> set[str]:
        rng, data = np.random.default_rng(0), Dataset(tuple(people))
        found = regroup(data, "responses", members, Sources(Words()), news={}, changed_before=changed_before, rng=rng)
        return {p for p, *_ in found.moved}

    assert moved(()) == {"a", "b"}, "c is near a mean that a and b have taken along"
    assert moved(("a", "b")) == {"a", "b", "c"}
    assert moved(tuple("abcdefg")) == {"a", "b"}, "where nobody else is left, they stand for it"


def test_the_command_says_what_is_new_and_launches_the_next_refresh(
    refreshed: tuple[PreparedStudy, Stores], seven: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, stores = refreshed
    launched: list[Study] = []

    def run_study(study: Study, **_: object) -> SimpleNamespace:
        launched.append(study)
        return SimpleNamespace(completed=True)

    monkeypatch.setattr(refresh_cli, "deployments", lambda _module: SimpleNamespace(run_study=run_study))
    monkeypatch.setattr(refresh_cli, "services_home", lambda: None)
    monkeypatch.setattr(refresh_cli, "open_local_stores", lambda **_: stores)
    path = write(tmp_path / "again.jsonl", {"persona_006": later(seven, seed=9)["persona_006"]})
    ended = CliRunner().invoke(refresh_cli.refresh, ["small", "--data", path, "--replay", "0.25"])
    assert ended.exit_code == 0, ended.output
    assert "8 dialogues read, 8 of them new" in ended.output
    assert [(study.name, study.refresh.replay, study.refresh.champion) for study in launched] == [("small.r2", 0.25, "small")]


def test_the_deployed_flow_ends_an_interrupted_refresh_then_runs_the_next(monkeypatch: pytest.MonkeyPatch, seven: Study) -> None:
    left, ran = [replace(seven, name="small.r1"), replace(seven, name="small.r2"), None], list[str]()

    def study(config: Study, **_: object) -> SimpleNamespace:
        ran.append(config.name)
        return SimpleNamespace(is_completed=lambda: True)

    monkeypatch.setattr(refresh_flow, "refresh_before", lambda _request, _run_id: None)
    monkeypatch.setattr(refresh_flow, "due_refresh", lambda _request: left.pop(0))
    monkeypatch.setattr(refresh_flow, "study", study)
    state = refresh_flow.refresh.fn(RefreshRequest(study_name="small", path="more.jsonl"))
    assert ran == ["small.r1", "small.r2"]
    assert state.message == "2 refreshes; nothing else in more.jsonl is new"
