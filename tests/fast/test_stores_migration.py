"""A database that an earlier version wrote is opened by this one, and everything in it is read."""

from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from clusterlora.metadata import (
    ComparisonSummary,
    Provenance,
)
from clusterlora.stores.metadata_kinds import NAME_BY_KIND
from clusterlora.stores.sql import SqlStudyStore
from clusterlora.values import Attempt
from tests.fixtures.metadata import OF_OLDER_DATABASES


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.all)])
def old(request: pytest.FixtureRequest, tmp_path: Path) -> SqlStudyStore:
    """Return the store opened on a database that revision 0005 wrote."""
    url = f"sqlite:///{tmp_path / 'study.db'}" if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    config = Config()
    config.set_main_option("script_location", "clusterlora.stores:migrations")
    with sa.create_engine(url.replace("postgresql://", "postgresql+psycopg://"), poolclass=sa.NullPool).begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0005")
        for statement in (Path(__file__).parents[1] / "fixtures" / "database_0005.sql").read_text(encoding="utf-8").splitlines():
            connection.exec_driver_sql(statement)
    return SqlStudyStore(url)


def test_metadata_of_every_kind_survive(old: SqlStudyStore) -> None:
    assert {type(value) for value in OF_OLDER_DATABASES} <= set(NAME_BY_KIND)
    for value in OF_OLDER_DATABASES:
        assert old.metadata("old", type(value)) == value


def test_seconds_are_split_into_phases_and_parts(old: SqlStudyStore) -> None:
    assert old.seconds("old") == (
        ("evaluate gate", "first", 4.0),
        ("evaluate test", "1/2", 5.0),
        ("merge", "ties-0.5", 7.0),
        ("prepare", "", 0.5),
        ("refine", "1", 6.0),
        ("train", "cluster-00", 61.25),
        ("train", "fan-out-1-of-2", 3.0),
    )


def test_a_study_compared_before_scores_were_recorded_keeps_its_champion(old: SqlStudyStore) -> None:
    assert old.metadata("compared-before-scores", ComparisonSummary) == ComparisonSummary("unified", "nothing beats unified.")
    assert old.metadata("compared-before-scores", Provenance) is None


def test_settings_data_adapters_routes_and_attempts_survive(old: SqlStudyStore) -> None:
    assert old.study("old").name == "old"
    assert old.dataset("old").digest == "c83d728b7f4d2f16"
    (adapter,) = old.adapters("old")
    assert (adapter.name, adapter.spec.persona_ids, adapter.spec.recipe.rank) == ("cluster-00", ("p",), 4)
    assert adapter.spec.recipe.kind == "lora"
    assert [route.persona_id for route in old.routes("old")] == ["p"]
    assert old.learning_curves("old") == {}
    assert old.attempts("old") == (Attempt("fan-out-1-of-2", 1, 2, "done", "", 80_000_000_000),)
