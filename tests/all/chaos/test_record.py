"""The file and the page of trials."""

from dataclasses import replace
from pathlib import Path

from tests.all.chaos.catalogue import BLOWS, CTRL_C, CYCLE, blow_of
from tests.all.chaos.record import Trial, add, read

GOOD = Trial(3, "SIGKILL of PostgreSQL", "", "2 adapters + 1.0 s", True, 2, 2, (), (), (), ("half-written copy x",), (), True, 12.0)


def test_trials_add_up_and_the_page_hides_no_failure(tmp_path: Path) -> None:
    file = tmp_path / "reliability.json"
    bad = replace(GOOD, seed=1, blow="no file can grow", trained_again=("unified",), completed=False, said="error: a | b")
    for made in (GOOD, replace(GOOD, seed=2), bad, replace(GOOD, seconds=13.0)):
        add(file, made)
    assert [t.seed for t in read(file)] == [1, 2, 3]
    assert read(file)[2].seconds == 13.0
    page = file.with_suffix(".md").read_text()
    assert "**3 trials (seeds 1-3): 2 good, 1 not.**" in page
    assert "- seed 1, no file can grow (2 adapters + 1.0 s): trained again unified; did not complete: error: a \\| b" in page
    assert "| SIGKILL of PostgreSQL | 2 | 2 | 2 | 2 |" in page


def test_four_cycles_are_over_a_hundred_trials_of_every_fault_with_twenty_times_ctrl_c() -> None:
    faults = [blow_of(seed) for seed in range(1, 4 * len(CYCLE) + 1)]
    assert len(faults) > 100
    assert {*faults} == {*BLOWS}
    assert faults.count(CTRL_C) == 20
