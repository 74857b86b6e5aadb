"""A database that an earlier version wrote is opened by this one, and everything in it is read."""

from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from clusterlora.gate.power import Power
from clusterlora.metadata import (
    ComparisonSummary,
    Decision,
    GateDecisions,
    ImportedAdapters,
    ImportedScores,
    MethodScore,
    Provenance,
    ReferencePoints,
    Refinement,
    RegisteredChampion,
    TrackerPage,
    TruthAgreement,
)
from clusterlora.persona_signal.measure import PersonaSignal, Recognition
from clusterlora.settings import Rung
from clusterlora.stores.metadata_kinds import NAME_BY_KIND
from clusterlora.stores.sql import SqlStudyStore

CHANCE = Recognition(accuracy=0.5, low=0.25, high=0.75, chance=0.5, n_classes=2)
SCORE = MethodScore(
    method="cluster", mean=0.75, mean_low=0.5, mean_high=1.0, difference=0.25, ci_low=0.125, ci_high=0.375, n_personas=2, n_items=4
)
REFERENCE_SCORE = MethodScore(
    method="unified", mean=0.75, mean_low=0.5, mean_high=1.0, difference=None, ci_low=None, ci_high=None, n_personas=2, n_items=4
)
WRITTEN = (
    Provenance(
        clusterlora_version="0.1.0",
        git_revision=None,
        data_digest="c83d728b7f4d2f16",
        base_revision="homelm-1",
        n_personas=2,
        n_dialogues=2,
    ),
    TrackerPage("http://127.0.0.1:5000/#/experiments/1/runs/2"),
    TruthAgreement(0.9375),
    ReferencePoints(0.25, 0.5, "0123456789abcdef"),
    GateDecisions(
        (
            Decision("retry", Rung(name="asked-1", epochs=6), "Ada", "2026-11-28T06:56:40+00:00"),
            Decision("continue", at="2026-11-28T06:56:41+00:00"),
        )
    ),
    Refinement(1),
    ImportedAdapters(((0, "0123456789abcdef"), (1, "fedcba9876543210"))),
    ImportedScores({"results": {"accuracy": {"p": 1.0, "q": 0.5}}}),
    ComparisonSummary("cluster", "cluster beats unified.", (SCORE, REFERENCE_SCORE)),
    RegisteredChampion("models:/old/1"),
    PersonaSignal(
        n_personas=2,
        n_exchanges=4,
        persona_from_prompts=CHANCE,
        persona_beyond_prompts=CHANCE,
        cluster_beyond_prompts=CHANCE,
        persona_explains=0.5,
        cluster_explains=0.25,
        random_explains=-0.125,
        distance_within=0.25,
        distance_between=0.5,
    ),
    Power(n_personas=2, n_items=20, item_sd=0.125, persona_sd=0.25, detectable_gain=None, false_pass=0.125, missed=0.5),
)
"""What the program that wrote the fixture had recorded of the study `old`."""


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
    assert {type(value) for value in WRITTEN} == set(NAME_BY_KIND)
    for value in WRITTEN:
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


def test_settings_data_adapters_and_routes_survive(old: SqlStudyStore) -> None:
    assert old.study("old").name == "old"
    assert old.dataset("old").digest == "c83d728b7f4d2f16"
    (adapter,) = old.adapters("old")
    assert (adapter.name, adapter.spec.persona_ids, adapter.spec.recipe.rank) == ("cluster-00", ("p",), 4)
    assert [route.persona_id for route in old.routes("old")] == ["p"]
    assert old.learning_curves("old") == {}
