"""A short version of the chaos suite: `make chaos` runs trials of every kind of fault for as long as there is time."""

from collections.abc import Iterator

import pytest

from tests.all.chaos.catalogue import CYCLE, blow_of
from tests.all.chaos.harness import trial
from tests.all.chaos.place import Place, place
from tests.fixtures.servers import INITDB

pytestmark = [pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def there() -> Iterator[Place]:
    if not INITDB:
        pytest.skip("PostgreSQL is not installed; apt-get install postgresql")
    with place() as services:
        yield services


@pytest.mark.parametrize("blow", ["SIGKILL of the trainer", "SIGKILL of PostgreSQL", "no file can grow"])
def test_a_study_completes_after_a_fault_and_nothing_is_lost_or_done_twice(blow: str, there: Place) -> None:
    # The first seed beyond those of the page that strikes this blow.
    seed = next(seed for seed in range(1001, 1001 + len(CYCLE)) if blow_of(seed) == blow)
    made = trial(seed, there)
    assert made.good, made
