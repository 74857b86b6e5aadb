"""The page that holds the signal's verdicts against studies, and the planted sets that it begins with."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.planted import CLUSTER_SIZES, DIALOGUES, PLANTED
from benchmarks.signal_check import holds, page
from clusterlora.data.load import read

WON, LOST, EVEN = [0.05, 0.02, 0.08], [-0.05, -0.08, -0.02], [0.01, -0.01, 0.03]


def gains(over_unified: list[float], over_others: list[float] | None = None) -> dict[str, list[float]]:
    return {"over unified": over_unified, "over others": over_others or over_unified}


def checked(expected: str, *, per_person: dict[str, list[float]], per_cluster: dict[str, list[float]]) -> dict[str, Any]:
    return {
        "base": "homelm",
        "expected": expected,
        "by_answer": [0.3, 0.2, 0.05],
        "explained": [0.021, 0.01, 0.0],
        "predicted": -0.001,
        "clusters_chosen": 1,
        "gains": {"cluster_hybrid": per_cluster, "hybrid": per_person},
    }


def test_a_verdict_agrees_when_those_win_who_were_expected_to_and_nobody_else() -> None:
    won, lost, even = gains(WON), gains(LOST), gains(EVEN)
    assert holds(checked("people", per_person=won, per_cluster=even))
    assert holds(checked("people", per_person=even, per_cluster=won))
    assert not holds(checked("people", per_person=even, per_cluster=lost))
    assert holds(checked("people and clusters", per_person=even, per_cluster=won))
    assert not holds(checked("people and clusters", per_person=even, per_cluster=even))
    assert holds(checked("nothing", per_person=even, per_cluster=lost))
    assert not holds(checked("little", per_person=won, per_cluster=even))


def test_a_gain_that_anybody_elses_adapter_has_too_is_no_win() -> None:
    longer_trained = gains(WON, EVEN)
    assert holds(checked("nothing", per_person=longer_trained, per_cluster=longer_trained))
    assert not holds(checked("people", per_person=longer_trained, per_cluster=longer_trained))


def test_the_page_counts_the_verdicts_that_agree_and_shows_every_number() -> None:
    shown = page(
        {
            "court": checked("nothing", per_person=gains(EVEN), per_cluster=gains(LOST)),
            "homes": checked("people", per_person=gains(LOST), per_cluster=gains(LOST)),
        }
    )
    assert "The verdict agrees on 1 of 2 sets." in shown
    row = "| court | homelm | nothing | 30.0% | 5.0% | 2.10% | 0.00% | none | -0.050 (-0.080 to -0.020) / "
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
