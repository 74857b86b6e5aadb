"""A watched file has a refresh asked for until its news are in one; one that cannot be read yet starts none."""

import os
import time
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.states import Cancelled, Failed, Running, Scheduled

from clusterlora.errors import UnknownName
from clusterlora.ports.stores import Stores
from clusterlora.requests import RefreshRequest
from clusterlora.settings import Study
from clusterlora.stages.prepare import prepare_study
from clusterlora.stages.refresh import next_refresh
from clusterlora.stages.watch import MOST_ASKED, PATIENCE_SECONDS, SETTLED_SECONDS, Look, look
from flows.refresh import refresh
from flows.watch import watch
from tasks.events import DATA_CHANGED, DATA_LEFT
from tasks.refreshes import refresh_under_way
from tasks.run_names import study_tag
from tests.fast.test_refresh import later, more, write
from tests.fixtures.stages import LOG
from tests.fixtures.studies import compared_stores

NOW = time.time()


def settled(path: Path, text: str | None = None) -> str:
    """Let a file, with a new text if one is given, be as if nobody had written for a while; return its path."""
    if text is not None:
        path.write_text(text, encoding="utf-8")
    then = NOW - 2 * SETTLED_SECONDS
    os.utime(path, (then, then))
    return str(path)


def later_look(path: Path | str, stores: Stores, number: int = 0) -> Look:
    """Look at a file as if it were so many times longer after the present than a refresh is waited for."""
    return look("small", str(path), stores, NOW + number * (PATIENCE_SECONDS + 1))


def test_what_is_half_written_or_vanishes_is_told_in_a_line_and_starts_nothing(
    finished_stores: Stores, seven: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "more.jsonl"
    assert later_look(file, finished_stores).sentence == f"{file}: is not there, or empty"
    whole = Path(more(seven, file)).read_text(encoding="utf-8")
    os.utime(file, (NOW, NOW))
    fresh = later_look(file, finished_stores)
    assert (fresh.tell, "may be half written" in fresh.sentence) == (None, True)
    half = later_look(settled(file, whole[:-30]), finished_stores)
    assert (half.tell, len(half.sentence.splitlines())) == (None, 1)
    assert half.sentence.startswith(f"{file}: cannot be read and is looked at again the next time: ")
    assert "more.jsonl:21: json: " in half.sentence
    assert half == later_look(file, finished_stores), "every time"
    settled(file, whole)

    def removed(*_args: object) -> str:
        file.unlink()
        return file.read_text()

    with monkeypatch.context() as patched:
        patched.setattr("clusterlora.stages.watch._digest", removed)
        gone = later_look(file, finished_stores)
    assert gone == Look(f"{file}: cannot be read and is looked at again the next time: No such file or directory")
    settled(Path(write(file, {"persona_000": later(seven, seed=0)["persona_000"][:1]})))
    without = later_look(file, finished_stores)
    assert without == Look(f"{file}: changed, without anything new to learn and test")
    assert later_look(file, finished_stores).sentence == f"{file}: unchanged"
    with pytest.raises(UnknownName, match="lost"):
        look("lost", str(file), finished_stores, NOW)


def test_a_refresh_is_asked_for_until_one_has_taken_the_news_and_three_times_at_most(
    finished_stores: Stores, seven: Study, tmp_path: Path
) -> None:
    file = Path(settled(Path(more(seven, tmp_path / "more.jsonl"))))
    asked = [later_look(file, finished_stores, number) for number in range(MOST_ASKED)]
    assert asked[0] == Look(f"{file}: changed; the next refresh is small.r1", "due")
    assert asked[1:] == [replace(asked[0], sentence=f"{asked[0].sentence}, asked for {n} times") for n in (2, 3)]
    soon = look("small", str(file), finished_stores, NOW + 2 * (PATIENCE_SECONDS + 1) + 60)
    assert soon == Look(f"{file}: not looked at, as a refresh was asked for 60 s ago")
    left = later_look(file, finished_stores, 3)
    assert left.tell == "left"
    assert left.sentence.endswith(f"then run: clusterlora study refresh small --data {file}")
    assert later_look(file, finished_stores, 4) == replace(left, tell=None), "told once"
    settled(file, file.read_text(encoding="utf-8") + "\n")
    assert later_look(file, finished_stores, 4) == asked[0], "it has changed"


def test_every_watched_file_is_known_by_its_own_content(finished_stores: Stores, seven: Study, tmp_path: Path) -> None:
    one, two = (Path(settled(Path(more(seven, tmp_path / name)))) for name in ("one.jsonl", "two.jsonl"))
    settled(two, two.read_text(encoding="utf-8") + "\n")
    assert later_look(one, finished_stores).tell == "due"
    assert later_look(two, finished_stores).sentence == f"{two}: not looked at, as a refresh was asked for 0 s ago"
    taken = next_refresh("small", str(one), finished_stores)
    prepare_study(taken, finished_stores, LOG)
    finished_stores.studies.set_status(taken.name, "finished")
    assert later_look(one, finished_stores, 1).sentence == f"{one}: taken, without anything new to learn and test"
    assert later_look(two, finished_stores, 1).sentence == f"{two}: changed, without anything new to learn and test"
    for file in (one, two):
        assert later_look(file, finished_stores, 2).sentence == f"{file}: unchanged"


def test_a_look_during_which_another_asks_asks_for_nothing(
    finished_stores: Stores, seven: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = settled(Path(more(seven, tmp_path / "more.jsonl")))
    inner: list[Look] = []

    def slow(*args: object) -> bool:
        monkeypatch.setattr("clusterlora.stages.watch.has_news", lambda *_args: True)
        inner.append(later_look(file, finished_stores))
        return True

    monkeypatch.setattr("clusterlora.stages.watch.has_news", slow)
    outer = later_look(file, finished_stores)
    assert (inner[0].tell, outer.tell) == ("due", None)


def test_what_the_study_lacks_is_not_blamed_on_the_file(seven: Study, tmp_path: Path) -> None:
    stores = compared_stores(tmp_path)
    file = settled(Path(more(seven, tmp_path / "more.jsonl")))
    found = later_look(file, stores)
    assert found.tell is None
    assert found.sentence.startswith(f"{file}: not looked at: study small has no champion to refresh")


def test_a_run_within_a_crashed_refresh_and_another_study_of_such_a_name_are_no_refreshes_under_way(
    finished_stores: Stores, seven: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_hand = FlowRun(flow_id=uuid4(), name="by hand", tags=[study_tag("small.r1")])
    within = by_hand.model_copy(update={"id": uuid4(), "name": "within", "parent_task_run_id": uuid4()})
    runs = [within]
    monkeypatch.setattr("tasks.refreshes._unfinished", lambda: runs)
    assert refresh_under_way("small", finished_stores) is None
    runs.append(by_hand)
    assert refresh_under_way("small", finished_stores) == "by hand"
    prepare_study(replace(seven, name="small.r1"), finished_stores, LOG)
    assert refresh_under_way("small", finished_stores) is None


@pytest.mark.whole
def test_nothing_is_looked_at_while_a_refresh_is_under_way(
    finished_stores: Stores, seven: Study, tmp_path: Path, prefect_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, str, dict[str, str]]] = []
    monkeypatch.setattr("tasks.study_task.from_environment", lambda: finished_stores)
    monkeypatch.setattr("tasks.watch.tell", lambda event, study, _message, **payload: told.append((event, study, payload)))
    path = settled(Path(more(seven, tmp_path / "more.jsonl")))
    request = RefreshRequest(study_name="small", path=path)

    @flow(name="study")
    def begun_by_hand() -> None: ...

    def looked(hours: int = 0) -> str:
        monkeypatch.setattr("tasks.watch.time.time", lambda: NOW + hours * 3600)
        return watch(request, return_state=True).message or ""  # pyrefly: ignore[no-matching-overload]

    with get_client(sync_client=True) as client:
        asked = client.create_flow_run(refresh, parameters={"request": {"study_name": "small", "path": path}}, state=Scheduled())
        by_hand = client.create_flow_run(begun_by_hand, state=Running(), tags=[study_tag("small.r7")])
        other = client.create_flow_run(begun_by_hand, state=Running(), tags=[study_tag("smaller.r1"), study_tag("small.r1.r1")])
        for run in (asked, by_hand):
            assert looked().startswith(f"{path}: not looked at while {run.name} is under way")
            assert (refresh(request, return_state=True).message or "").startswith(f"nothing is done while {run.name} is under way")  # pyrefly: ignore[no-matching-overload]
            client.set_flow_run_state(run.id, Cancelled(), force=True)
        assert not told
        for hours, ending in enumerate(("small.r1", "asked for 2 times", "asked for 3 times")):
            assert looked(hours).endswith(ending)
            failed = client.create_flow_run(refresh, parameters={"request": {"study_name": "small", "path": path}}, state=Running())
            assert failed.name in looked(hours)
            client.set_flow_run_state(failed.id, Failed(), force=True)
            assert "s ago" in looked(hours)
        looked(3)
        looked(4)
        client.set_flow_run_state(other.id, Cancelled(), force=True)
    assert told == [(event, "small", {"path": path}) for event in (*[DATA_CHANGED] * MOST_ASKED, DATA_LEFT)]
