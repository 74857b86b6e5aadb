"""In which order pytest-xdist's workers run the tests."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import cast

import pytest

from tests.fixtures.order import dear_first


@dataclass(frozen=True)
class Item:
    """A test, as far as its order asks."""

    path: str
    tier: str
    number: int

    def get_closest_marker(self, name: str) -> pytest.Mark | None:
        if name == "timeout" and self.path == "f":
            return pytest.mark.timeout(900).mark
        return pytest.Mark(name, (), {}, _ispytest=True) if name == self.tier else None


@pytest.mark.parametrize("n_workers", [1, 2, 3])
def test_each_worker_begins_with_its_share_of_the_dear_tests_and_no_test_is_lost(n_workers: int) -> None:
    numbers: Iterator[int] = count()
    files = {"a": "all", "b": "fast", "c": "whole", "d": "all", "e": "fast", "f": "all"}
    items = [Item(path, tier, next(numbers)) for path, tier in files.items() for _ in range(4)]
    ordered = cast("list[Item]", dear_first(cast("list[pytest.Item]", items), n_workers))
    assert sorted(ordered, key=lambda item: item.number) == items
    for worker in range(n_workers):
        stretch = ordered[worker * len(items) // n_workers : (worker + 1) * len(items) // n_workers]
        dear = [item.path for item in stretch if item.tier != "fast"]
        assert [item.path for item in stretch][: len(dear)] == dear
        assert dear, "a worker begins with none"
        assert all(dear.count(path) == 4 for path in dear)
    assert ordered[0].path == "f", "what asks for most time is begun first"
