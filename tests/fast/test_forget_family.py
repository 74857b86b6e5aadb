"""`persona forget` in a family of refreshes: what is trained again goes on from the last adapters that never saw the person."""

from dataclasses import replace

import pytest

from clusterlora.errors import BadData
from clusterlora.metadata import News
from clusterlora.planning.study_state import read_state
from clusterlora.planning.work_plan import work_plan
from clusterlora.ports.stores import Stores
from clusterlora.pseudonyms import pseudonym
from clusterlora.settings import PreparedStudy, Study
from clusterlora.stages.forget import forget, read_certificate
from clusterlora.stages.forget_plan import Certificate, plan_removal
from clusterlora.stages.prepare import prepare_study
from clusterlora.stages.refresh import next_refresh
from tests.fast.test_refresh import later, refreshed, write  # noqa: F401  (a fixture)
from tests.fixtures.stages import LOG


def leave(persona_id: str, stores: Stores, only: tuple[str, ...] = ()) -> Certificate:
    return read_certificate(forget(pseudonym(stores.home, persona_id, make_key=True), stores, LOG, only=only))


def keys(study: str, stores: Stores) -> dict[str, str]:
    return {adapter.name: adapter.key for adapter in stores.studies.adapters(study)}


@pytest.mark.whole
def test_who_came_with_a_refresh_is_forgotten_there_and_it_goes_on_from_the_champion_that_never_saw_them(
    refreshed: tuple[PreparedStudy, Stores],  # noqa: F811
    seven: Study,
) -> None:
    study, stores = refreshed
    first = keys("small", stores)
    (done,) = leave("new", stores).studies
    assert done.study == study.name
    assert keys("small", stores) == first
    plan = work_plan(read_state(study.name, stores))
    assert "unified" in {one.name for one in done.retrained}
    assert plan.keys[str(plan.specs["unified"].init_from)] == first["unified"]
    assert "new" not in stores.studies.dataset(study.name).ids
    assert stores.studies.status(study.name) == "finished"
    said = later(seven, seed=6)
    path = write(stores.home / "later.jsonl", {"persona_003": said["persona_003"], "new": said["persona_005"]})
    assert "new" not in prepare_study(next_refresh("small", path, stores), stores, LOG).ids, "a file that still has them brings nobody back"
    news = stores.studies.metadata(study.name, News)
    assert news is not None
    only_news = replace(news, dialogues=tuple(one for one in news.dialogues if one[0] == "persona_000"))
    stores.studies.save_metadata(study.name, only_news)
    stores.studies.set_status("small.r2", "created")
    with pytest.raises(BadData, match="has no new test dialogue"):
        leave("persona_000", stores)


@pytest.mark.whole
def test_who_was_there_from_the_start_is_forgotten_by_the_whole_family(
    refreshed: tuple[PreparedStudy, Stores],  # noqa: F811
) -> None:
    study, stores = refreshed
    person = pseudonym(stores.home, "persona_002", make_key=True)
    gone = {one.key for removal in plan_removal(person, stores).studies for one in removal.removed}
    certificate = leave("persona_002", stores, only=(study.name,))
    assert [one.study for one in certificate.studies] == ["small", study.name], "a refresh has its whole family with it"
    for name in ("small", study.name):
        state = read_state(name, stores)
        assert not gone & {adapter.key for adapter in state.adapters}
        assert not gone & set(work_plan(state).keys.values()), "nothing starts from, or answers on, what learned from the person"
        assert not any("persona_002" in adapter.spec.persona_ids for adapter in state.adapters)
        assert state.outcome is not None
    start = read_state(study.name, stores).start
    assert start is not None
    assert {one.key for one in start.adapters} <= set(keys("small", stores).values())
