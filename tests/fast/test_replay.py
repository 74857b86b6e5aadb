"""What is recorded on a GPU and when; the recordings themselves are tested where there is one (test_on_a_gpu.py)."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from clusterlora.models import replay
from clusterlora.models.packing import Padding, Run, pack
from clusterlora.models.replay import Replays, like_size


@dataclass(frozen=True)
class Asked:
    x: Tensor
    runs: tuple[Run, ...]
    masks: Tensor | None = None
    learn: bool = True


def asked(*lengths: int, learn: bool = True) -> Asked:
    packing = pack(torch.tensor(lengths), Padding(32, alike=True))
    return Asked(torch.rand(len(packing.row), 3), packing.runs, learn=learn)


class Recorded:
    """Stands where a recording would: remembers what it was made for, and doubles."""

    made: list[Asked]

    def __init__(self, _function: Any, given: Asked, pool: Any) -> None:
        self.made.append(given)
        self.pool = pool or "pool"

    def run(self, given: Asked) -> Tensor:
        return 2 * given.x


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[Asked]:
    Recorded.made = []
    monkeypatch.setattr(replay, "_Recording", Recorded)
    return Recorded.made


def plain(given: Asked) -> Tensor:
    return given.x + given.x


@given(st.integers(1, 5000))
def test_sizes_are_few_and_at_most_a_quarter_more_than_needed(n: int) -> None:
    assert n <= like_size(n) <= max(n, 1.25 * n)
    assert like_size(like_size(n)) == like_size(n) >= like_size(n - 1)
    assert len({like_size(m) for m in range(1, n + 1)}) <= 4 * n.bit_length()


def test_only_what_comes_again_is_recorded_and_every_answer_is_the_functions(recorded: list[Asked]) -> None:
    replays = Replays[Asked](torch.device("cuda"))
    batches = [asked(5, 9), asked(40, 3), asked(30, 2), asked(5, 9, learn=False), asked(1), asked(7, 7)]
    for batch in batches:
        assert torch.equal(replays(plain, batch), 2 * batch.x)
    # Two rows of at most 32 tokens came a second time with the third batch, and a third time with the last.
    assert recorded == [batches[2]]
    replays(plain, replace(batches[0], masks=torch.ones(1)))
    assert len(recorded) == 1, "with masks it is another function"


def test_when_enough_is_recorded_the_rest_runs_as_ever(recorded: list[Asked], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "_MOST_RECORDED", 2)
    replays = Replays[Asked](torch.device("cuda"))
    for _ in range(3):
        for n_rows in range(1, 6):
            batch = asked(*[4] * n_rows)
            assert torch.equal(replays(plain, batch), 2 * batch.x)
    assert len(recorded) == 2


def test_nothing_is_recorded_on_a_cpu(recorded: list[Asked]) -> None:
    replays = Replays[Asked](torch.device("cpu"))
    for _ in range(3):
        replays(plain, asked(5))
    assert not recorded
