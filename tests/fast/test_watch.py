"""A watched file starts a refresh once per change that has news; one that cannot be read yet starts none."""

import os
import time
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.states import Cancelled, Scheduled

from clusterlora.errors import UnknownName
from clusterlora.ports.stores import Stores
from clusterlora.requests import RefreshRequest
from clusterlora.settings import Study
from clusterlora.stages.watch import SETTLED_SECONDS, acted_on, look
from flows.refresh import refresh
from flows.watch import watch
from tasks.events import DATA_CHANGED
from tests.fast.test_refresh import later, more, write


def settled(path: Path, text: str | None = None) -> str:
    """Let a file, with a new text if one is given, be as if nobody had written for a while; return its path."""
    if text is not None:
        path.write_text(text, encoding="utf-8")
    then = time.time() - 2 * SETTLED_SECONDS
    os.utime(path, (then, then))
    return str(path)


def test_a_change_with_news_is_told_once_and_what_is_half_written_not_at_all(finished_stores: Stores, seven: Study, tmp_path: Path) -> None:
    file = tmp_path / "more.jsonl"
    assert look("small", str(file), finished_stores).sentence == f"{file}: is not there, or empty"
    whole = Path(more(seven, file)).read_text(encoding="utf-8")
    fresh = look("small", str(file), finished_stores)
    assert (fresh.digest, "may be half written" in fresh.sentence) == (None, True)
    half = look("small", settled(file, whole[:-30]), finished_stores)
    assert (half.digest, len(half.sentence.splitlines())) == (None, 1)
    assert half.sentence.startswith(f"{file}: cannot be read and is looked at again the next time: ")
    assert "more.jsonl:21: json: " in half.sentence
    assert half == look("small", str(file), finished_stores), "every time"
    found = look("small", settled(file, whole), finished_stores)
    assert found.sentence == f"{file}: changed; the next refresh is small.r1"
    assert found.digest is not None
    acted_on("small", str(file), found.digest, finished_stores)
    assert look("small", str(file), finished_stores).sentence == f"{file}: unchanged"
    settled(file, whole + "\n")
    assert look("small", str(file), finished_stores).digest not in (None, found.digest)
    settled(Path(write(file, {"persona_000": later(seven, seed=0)["persona_000"][:1]})))
    without = look("small", str(file), finished_stores)
    assert (without.digest, without.sentence) == (None, f"{file}: changed, without anything new to learn and test")
    assert look("small", str(file), finished_stores).sentence == f"{file}: unchanged"
    with pytest.raises(UnknownName, match="lost"):
        look("lost", str(file), finished_stores)


@pytest.mark.whole
def test_nothing_is_looked_at_while_a_refresh_is_under_way(
    finished_stores: Stores, seven: Study, tmp_path: Path, prefect_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, str, dict[str, str]]] = []
    monkeypatch.setattr("tasks.study_task.from_environment", lambda: finished_stores)
    monkeypatch.setattr("tasks.watch.tell", lambda event, study, _message, **payload: told.append((event, study, payload)))
    path = settled(Path(more(seven, tmp_path / "more.jsonl")))
    request = RefreshRequest(study_name="small", path=path)
    with get_client(sync_client=True) as client:
        run = client.create_flow_run(refresh, parameters={"request": {"study_name": "small", "path": path}}, state=Scheduled())
        assert watch(request, return_state=True).message == f"{path}: not looked at while {run.name} is under way"
        client.set_flow_run_state(run.id, Cancelled(), force=True)
    assert not told
    assert watch(request, return_state=True).message == f"{path}: changed; the next refresh is small.r1"
    assert watch(request, return_state=True).message == f"{path}: unchanged"
    assert told == [(DATA_CHANGED, "small", {"path": path})]
