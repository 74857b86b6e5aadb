"""The page that holds the signal's verdicts against studies."""

from benchmarks.signal_check import holds, page

WON, LOST, EVEN = [0.05, 0.02, 0.08], [-0.05, -0.08, -0.02], [0.01, -0.01, 0.03]


def checked(expected: str, *, per_person: list[float], per_cluster: list[float], worth_having: int = 1) -> dict[str, object]:
    return {
        "expected": expected,
        "recognised": [0.3, 0.05],
        "predicted": -0.001,
        "sizes": [6, 6],
        "worth_having": worth_having,
        "gains": {"cluster_hybrid": per_cluster, "hybrid": per_person},
    }


def test_a_verdict_holds_when_those_win_who_were_expected_to_and_nobody_else():
    assert holds(checked("people", per_person=WON, per_cluster=EVEN))
    assert not holds(checked("people", per_person=EVEN, per_cluster=WON))
    assert holds(checked("people and clusters", per_person=EVEN, per_cluster=WON))
    assert holds(checked("nothing", per_person=EVEN, per_cluster=LOST))
    assert not holds(checked("little", per_person=WON, per_cluster=EVEN))


def test_the_page_counts_the_verdicts_that_hold_and_shows_every_number():
    shown = page(
        {
            "court": checked("nothing", per_person=EVEN, per_cluster=LOST),
            "homes": checked("people and clusters", per_person=LOST, per_cluster=LOST, worth_having=4),
        }
    )
    assert "The verdict holds for 1 of 2 sets." in shown
    assert "| court | nothing | 30.0% | 5.0% | 0.00% | none | -0.050 (-0.080 to -0.020) | +0.010 (-0.010 to +0.030) | holds |" in shown
    assert "| 4 clusters |" in shown
    assert "does not hold |" in shown
