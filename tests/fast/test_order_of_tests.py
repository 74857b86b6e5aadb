"""In which order pytest-xdist's workers run the tests."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import cast

import pytest

from tests.fixtures.order import dear_first


@dataclass(frozen=True)
class Item:
    """A test, as far as its order asks."""

    path: Path
    tier: str
    number: int

    def get_closest_marker(self, name: str) -> pytest.Mark | None:
        if name == "timeout" and self.path.stem == "f":
            return pytest.mark.timeout(900).mark
        return pytest.Mark(name, (), {}, _ispytest=True) if name == self.tier else None


def ordered(files: dict[str, str], n_workers: int) -> tuple[list[Item], list[list[Item]]]:
    """Return four tests of each file, and what each worker is given of them."""
    numbers: Iterator[int] = count()
    items = [Item(Path(path), tier, next(numbers)) for path, tier in files.items() for _ in range(4)]
    inside = cast("list[Item]", dear_first(cast("list[pytest.Item]", items), n_workers))
    return items, [inside[worker * len(items) // n_workers : (worker + 1) * len(items) // n_workers] for worker in range(n_workers)]


@pytest.mark.parametrize("n_workers", [1, 2, 3])
def test_each_worker_begins_with_its_share_of_the_dear_tests_and_no_test_is_lost(n_workers: int) -> None:
    files = {"all/a": "all", "fast/b": "fast", "fast/c": "whole", "all/d": "all", "fast/e": "fast", "all/f": "all"}
    items, stretches = ordered(files, n_workers)
    assert sorted((item for stretch in stretches for item in stretch), key=lambda item: item.number) == items
    for stretch in stretches:
        dear = [item.path for item in stretch if item.tier != "fast"]
        assert [item.path for item in stretch][: len(dear)] == dear
        assert dear, "a worker begins with none"
        assert all(dear.count(path) == 4 for path in dear)
    assert stretches[0][0].path.stem == "f", "what asks for most time is begun first"


@pytest.mark.parametrize("n_workers", [1, 2, 3, 4])
def test_tests_of_servers_come_before_those_that_compute_and_who_has_the_longest_is_given_another_last(n_workers: int) -> None:
    dear = {"fast/c": "whole", **{f"whole/{n}": "whole" for n in range(2 * n_workers - 2)}, "fast/d": "all", "all/f": "all"}
    _, stretches = ordered({**{f"fast/{n}": "fast" for n in range(13)}, **dear}, n_workers)
    kinds = [["fast" not in item.path.parts for item in stretch] for stretch in stretches]
    assert kinds == [sorted(kind, reverse=True) for kind in kinds]
    assert [sum(kind) for kind in kinds] == [4, *[8] * (n_workers - 1)]
