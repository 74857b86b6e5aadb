"""Where the alias of a family goes: not to what is shown worse, not away from what was put there meanwhile, nor twice on the same items."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient

from clusterlora.comparison.move import decide, left_elsewhere, may_have_cost
from clusterlora.comparison.result import Comparison, NoChampion
from clusterlora.metadata import ComparisonSummary, RefreshOutcome, Regrouping, Shift
from clusterlora.planning.family import decided_before, moves_before
from clusterlora.planning.study_state import read_state
from clusterlora.ports.stores import Stores
from clusterlora.results.refresh import split_by_news
from clusterlora.settings import PreparedStudy, Study
from clusterlora.stages.compare import compare_study
from clusterlora.stages.prepare import prepare_study
from clusterlora.stages.refresh import next_refresh
from clusterlora.stages.register import register_models
from clusterlora.stores.champion_history import history, move_champion
from clusterlora.values import Clustering
from tasks.comparison import register
from tasks.events import CHAMPION_MOVED
from tests.fast.test_refresh import end, later, refreshed, write
from tests.fixtures.comparison import compared, evaluation
from tests.fixtures.memory import MemoryTracker
from tests.fixtures.stages import LOG, crown, rows_of

__all__ = ["refreshed"]
"""The fixture."""

NOTHING = ComparisonSummary(champion=None, sentence="")


def outcome(
    challenger: float, *, old: float | None = None, noise: float = 0.003, earlier: Sequence[RefreshOutcome] = (), **changes: object
) -> RefreshOutcome:
    """Return what is decided where the champion scores 0.8 and the challenger as said, on new items and on old ones."""

    def against(score: float, **more: object) -> Comparison:
        rows = evaluation({"last_champion": 0.80, "unified": 0.3, "cluster": score}, sizes=(20, 20), noise=noise)
        return compared(rows, reference="last_champion", **({"floor": None} | more))

    return decide(against(challenger, **changes), against(old) if old is not None else None, "cluster", earlier)


def test_what_is_shown_to_be_worse_on_old_items_never_moves_the_champion() -> None:
    assert outcome(0.805, old=0.80).moved
    forgot = outcome(0.805, old=0.50)
    assert (forgot.moved, "is shown to be worse on old items (-30" in forgot.reason) == (False, True)


def shift(low: float, high: float) -> RefreshOutcome:
    on_new = Shift(champion=0.8, challenger=0.8, difference=(low + high) / 2, ci_low=low, ci_high=high, n_items=90, n_personas=9)
    return RefreshOutcome(moved=True, challenger="cluster", reason="", on_new=on_new, on_old=None)


def test_a_champion_left_elsewhere_says_what_its_comparison_would_have_done() -> None:
    better = outcome(0.9)
    left = left_elsewhere(better, "the alias champion stays with unified of study small")
    assert (better.moved, left.moved, left.on_new) == (True, False, better.on_new)
    assert left.reason.startswith("the alias champion stays with unified of study small; its comparison would have moved it, as cluster is")


@pytest.mark.whole
def test_the_margin_is_spent_once_and_gains_are_not_saved_up() -> None:
    moves: list[RefreshOutcome] = []
    for _ in range(10):
        last = outcome(0.80, noise=0.01, earlier=moves)
        moves += [last] if last.moved else []
    assert len(moves) == 2, "each may have cost 0.45 points of the margin of 1"
    assert "what the moves of before have left of 1.00 points" in moves[1].reason
    assert "may have cost the margin" in outcome(0.80, earlier=[shift(-0.01, 0.01)]).reason
    assert may_have_cost([shift(-0.009, 0.0), shift(0.001, 0.002), shift(-0.001, 0.0)], 1.0) == pytest.approx(-0.009)
    assert may_have_cost([shift(0.1, 0.2), shift(-0.009, 0.0)], 1.0) == pytest.approx(-0.009)
    assert may_have_cost([shift(-0.002, 0.009)], -1.0) == pytest.approx(-0.009), "where lower is better the upper end is the worst"


def test_the_challenger_is_held_to_the_floor_and_the_champions_lack_is_not_blamed_on_it() -> None:
    rows = evaluation({"last_champion": 0.80, "unified": 0.3, "cluster": 0.80}, sizes=(20, 20), noise=0.003)
    no_worse = compared(rows, reference="last_champion", floor=None)
    assert (no_worse.champion, decide(no_worse, None, "cluster").moved) == ("last_champion", True)
    lack = NoChampion(reason="floor", method="cluster")
    held = decide(replace(no_worse, obstacles={"cluster": lack}), None, "cluster")
    assert (held.moved, held.reason) == (False, "cluster is not shown to be better than the floor")
    blamed = NoChampion(reason="floor", method="last_champion")
    alone = replace(no_worse, champion=None, no_champion=blamed, obstacles={"last_champion": blamed})
    assert decide(alone, None, "cluster").moved
    both = compared(rows, reference="last_champion", floor=0.9)
    assert both.obstacles.keys() == {"last_champion", "unified", "cluster"}
    assert decide(both, None, "cluster").reason == held.reason


def crowned(study: PreparedStudy, stores: Stores, method: str = "cluster") -> None:
    """Record that a refresh's champion moves."""
    state = read_state(study.name, stores)
    assert state.moved is not None
    assert state.outcome is not None
    stores.studies.save_metadata(study.name, replace(state.moved, moved=True, challenger=method, elsewhere=None))
    stores.studies.save_metadata(study.name, replace(state.outcome, champion=method))


def promote(version: int, stores: Stores) -> None:
    """Move the alias by hand."""
    assert isinstance(stores.tracker, MemoryTracker)
    stores.tracker.champions["small"] = version


def test_launched_again_a_study_does_not_take_the_alias_back(refreshed: tuple[PreparedStudy, Stores]) -> None:
    study, stores = refreshed
    crowned(study, stores)
    for name, uri in ((study.name, "models:/small/2"), ("small", None), (study.name, "models:/small/2")):
        assert register_models(name, stores, LOG) == uri
        assert stores.tracker.champion("small") == (study.name, "cluster")
    promote(1, stores)
    assert register_models("small", stores, LOG) == "models:/small/1"
    assert register_models(study.name, stores, LOG) is None, "a rollback is not undone, although it went back to what was challenged"
    assert stores.tracker.champion("small") == ("small", "cluster")
    after = read_state(study.name, stores).moved
    assert after is not None
    assert after.moved, "it did move once"


@pytest.mark.whole
def test_a_champion_that_was_put_there_during_a_refresh_stays(
    refreshed: tuple[PreparedStudy, Stores], seven: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, stores = refreshed
    crown("small", stores, champion="unified")
    assert register_models("small", stores, LOG) == "models:/small/2", "its own version, compared again"
    crowned(study, stores)
    assert register_models(study.name, stores, LOG) is None
    assert stores.tracker.champion("small") == ("small", "unified")
    after = read_state(study.name, stores).moved
    assert after is not None
    stays = "the alias champion stays with unified of study small, where it was put since study small.r1 began"
    assert (after.moved, after.elsewhere) == (False, stays)
    folder = stores.folder(study.name) / "results"
    pages = [folder / "summary.md", folder / "report.html"]
    for said in (*(page.read_text(encoding="utf-8") for page in pages), (read_state(study.name, stores).outcome or NOTHING).sentence):
        assert stays in said
        assert "moves to" not in said
        assert "champion moves" not in said
    compare_study(study.name, stores, LOG)
    assert read_state(study.name, stores).moved == after, "compared again, it stays where it was put"
    promote(1, stores)
    better = replace(after, moved=True, challenger="cluster", reason="better", elsewhere=None)
    monkeypatch.setattr("clusterlora.stages.compare.decide", lambda *_args: better)
    assert register_models(study.name, stores, LOG) == "models:/small/3", "the alias is back with the champion that was challenged"
    assert read_state(study.name, stores).moved == better
    assert stays not in pages[0].read_text(encoding="utf-8")
    third = next_refresh("small", write(tmp_path / "again.jsonl", {"persona_006": later(seven, seed=9)["persona_006"]}), stores)
    prepare_study(third, stores, LOG)
    assert moves_before(third.name, stores) == (read_state(study.name, stores).moved,)


@pytest.mark.whole
def test_items_that_decided_an_earlier_refresh_do_not_decide_again(
    refreshed: tuple[PreparedStudy, Stores], seven: Study, tmp_path: Path
) -> None:
    study, stores = refreshed
    state = read_state(study.name, stores)
    assert state.moved is not None
    assert state.moved.on_new is not None
    said = later(seven, seed=9)
    second = next_refresh("small", write(tmp_path / "again.jsonl", {"persona_006": said["persona_006"]}), stores)
    assert not decided_before(second, stores), "three people were too few for a verdict"
    verdict = replace(state.moved, on_new=replace(state.moved.on_new, n_personas=6, n_items=12))
    stores.studies.save_metadata(study.name, verdict)
    assert not decided_before(study, stores), "its own items are its own"
    decided = decided_before(second, stores)
    news = {(p, one) for p, ids in state.news.dialogues for one in ids} if state.news else set()
    assert decided == {(p.id, d.id) for p in state.dataset.personas for d in p.of_split("test")} & news
    end(second, stores)
    with_old_news = read_state(second.name, stores)
    rows = [row for row in rows_of(second, stores) if row.method == "unified"]
    new, old = split_by_news(with_old_news, rows, decided)
    assert {row.persona_id for row in new} == {"persona_006"}
    left_out = {(row.persona_id, row.item_id.partition("#")[0]) for row in rows if row not in new and row not in old}
    assert left_out == decided
    summary = (stores.folder(second.name) / "results" / "summary.md").read_text()
    assert f"| decided before | {len(decided)} new test dialogues on which an earlier refresh had its verdict" in summary


class Registry:
    """A registered model whose server refuses tags that are too long, as MLflow's database does."""

    def __init__(self) -> None:
        self.tags: dict[str, str] = {}
        self.aliases: dict[str, str] = {}

    def get_registered_model(self, _name: str) -> "Registry":
        return self

    def set_registered_model_tag(self, _name: str, tag: str, value: str) -> None:
        if len(value) > 5000:
            raise ValueError(f"value too long: {len(value)}")
        self.tags[tag] = value

    def set_registered_model_alias(self, _name: str, alias: str, version: str) -> None:
        self.aliases[alias] = version


def test_another_champion_is_told_of_once_with_the_one_that_it_replaces(finished_stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, ...]] = []
    monkeypatch.setattr("tasks.study_task.from_environment", lambda: finished_stores)
    monkeypatch.setattr("tasks.study_task.PrefectRunLog", lambda _: LOG)
    monkeypatch.setattr("tasks.comparison.tell", lambda *event: told.append(event))
    before = register.fn("small")
    assert not told, "it was the champion already"
    crown("small", finished_stores, "cluster")
    after = register.fn("small")
    assert register.fn("small") == after != before
    assert told == [(CHAMPION_MOVED, "small", f"{after} answers, instead of {before}")]


def test_the_history_of_champions_fits_a_tag_and_is_written_before_the_alias_moves() -> None:
    registry = Registry()
    client: MlflowClient = registry  # pyrefly: ignore[bad-assignment]
    for number in range(1, 101):
        move_champion(
            client, "demo", str(number), "because \u00e4\u4f60" * 2000 if number == 60 else f"the comparison of study demo.r{number}"
        )
    moves = history(client, "demo")
    assert [move.version for move in moves] == [str(number) for number in range(101 - len(moves), 101)]
    assert len(moves) > 20
    registry.aliases.clear()
    move_champion(client, "demo", "100", "again")
    assert (registry.aliases, len(history(client, "demo"))) == ({"champion": "100"}, len(moves)), "an alias that was deleted comes back"
    registry.set_registered_model_tag = lambda *_: json.loads("")  # pyrefly: ignore[bad-assignment]
    with pytest.raises(ValueError, match="Expecting value"):
        move_champion(client, "demo", "101", "refused")
    assert registry.aliases == {"champion": "100"}


@pytest.mark.whole
def test_clustered_anew_into_one_cluster_unified_challenges(refreshed: tuple[PreparedStudy, Stores]) -> None:
    study, stores = refreshed
    state = read_state(study.name, stores)
    stores.studies.save_clustering(study.name, Clustering("responses", (tuple(sorted(state.dataset.ids)),)))
    stores.studies.save_metadata(study.name, Regrouping(moved=(), n_personas=7, anew=True))
    compare_study(study.name, stores, LOG)
    after = read_state(study.name, stores).moved
    assert after is not None
    assert (after.challenger, after.moved) == ("unified", False)
