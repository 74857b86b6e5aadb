"""The page that holds the signal's verdicts against studies, and the planted sets that it begins with."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.planted import CLUSTER_SIZES, DIALOGUES, PLANTED
from benchmarks.signal_check import outcome, page
from clusterlora.data.load import read

WON, LOST, EVEN = [0.05, 0.02, 0.08], [-0.05, -0.08, -0.02], [0.01, -0.01, 0.03]
WON_MUCH, WIDE = [0.15, 0.1, 0.2], [0.05, -0.01, 0.11]


def gains(over_unified: list[float], over_others: list[float] | None = None) -> dict[str, list[float]]:
    return {"over unified": over_unified, "over others": over_others or over_unified}


def checked(expected: str, *, per_person: dict[str, list[float]], per_cluster: dict[str, list[float]]) -> dict[str, Any]:
    return {
        "base": "homelm",
        "expected": expected,
        "by_answer": [0.3, 0.2, 0.41, 0.05],
        "explained": 0.021,
        "predicted": -0.001,
        "clusters_chosen": 1,
        "gains": {"cluster_hybrid": per_cluster, "hybrid": per_person},
    }


HELD, REFUTED, OPEN = "agrees", "does not agree", "not decided"


@pytest.mark.parametrize(
    ("expected", "per_person", "per_cluster", "found"),
    [
        ("people", gains(WON), gains(EVEN), HELD),
        ("people", gains(EVEN), gains(WON), HELD),
        ("people", gains(EVEN), gains(LOST), REFUTED),
        ("people", gains(WIDE), gains(LOST), OPEN),
        ("people", gains(WIDE, EVEN), gains(LOST), REFUTED),
        ("people and clusters", gains(EVEN), gains(WON), HELD),
        ("people and clusters", gains(EVEN), gains(EVEN), REFUTED),
        ("nothing", gains(EVEN), gains(LOST), HELD),
        ("nothing", gains(WIDE), gains(LOST), HELD),
        ("nothing", gains(WON), gains(EVEN), REFUTED),
        ("little", gains(WON), gains(EVEN), HELD),
        ("little", gains(WON_MUCH), gains(EVEN), REFUTED),
        ("little", gains(EVEN), gains(EVEN), HELD),
        ("undecided", gains(WON), gains(WON), OPEN),
        ("undecided", gains(EVEN), gains(LOST), OPEN),
    ],
)
def test_a_verdict_agrees_or_does_not_or_one_of_the_two_leaves_it_open(
    expected: str, per_person: dict[str, list[float]], per_cluster: dict[str, list[float]], found: str
) -> None:
    assert outcome(checked(expected, per_person=per_person, per_cluster=per_cluster)) == found


def test_a_gain_that_anybody_elses_adapter_has_too_is_no_win() -> None:
    longer_trained = gains(WON, EVEN)
    assert outcome(checked("nothing", per_person=longer_trained, per_cluster=longer_trained)) == HELD
    assert outcome(checked("people", per_person=longer_trained, per_cluster=longer_trained)) == REFUTED


def test_the_page_counts_the_verdicts_that_agree_and_shows_every_number() -> None:
    shown = page(
        {
            "court": checked("nothing", per_person=gains(EVEN), per_cluster=gains(LOST)),
            "homes": checked("people", per_person=gains(LOST), per_cluster=gains(LOST)),
            "plays": checked("undecided", per_person=gains(WON), per_cluster=gains(LOST)),
        }
    )
    assert "The verdict agrees on 1 of 3 sets, does not on 1, and on 1 it is not decided." in shown
    row = "| court | homelm | nothing | 30.0% (20.0% to 41.0%) | 5.0% | 2.10% | 0.00% | none | -0.050 (-0.080 to -0.020) / "
    assert row in shown
    assert "does not agree |" in shown


@pytest.mark.parametrize("name", PLANTED)
def test_every_planted_set_has_its_people_and_dialogues(name: str, tmp_path: Path) -> None:
    people = read(PLANTED[name](tmp_path)).dataset.personas
    if PLANTED[name](tmp_path).source == "table":
        assert [len(person.dialogues) for person in people] == [DIALOGUES] * sum(CLUSTER_SIZES)
    texts = {person.id: " ".join(turn.text for d in person.dialogues for turn in d.turns) for person in people}
    assert ("Yours, " in next(iter(texts.values()))) == (name == "prompts are signed")
    assert sum("WHATEVER" in text for text in texts.values()) == (name == "three are extreme, the others alike")
