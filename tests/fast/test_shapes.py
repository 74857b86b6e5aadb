"""Shapes in annotations are checked while tests run: in fixtures' own decorator, and in the packages that the import hook gives it."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from beartype.roar import BeartypeCallHintParamViolation, BeartypeCallHintReturnViolation
from jaxtyping import Float, TypeCheckError

from clusterlora.evaluation.statistics import paired_bootstrap
from tests.fixtures.shapes import checked

Row = Float[np.ndarray, " n"]


@checked
def joined(a: Row, b: Row) -> Row:
    return np.concatenate([a, b]) if a[0] else a + b


@checked
def pieces(a: Row, b: Row) -> Iterator[int]:
    yield len(a)
    yield len(b)


@checked
def within(b: Row, n: int) -> list[int]:
    return list(pieces(np.zeros(n), b[:n]))


@checked
@dataclass
class Pair:
    a: Row
    b: Row


def test_an_axis_has_one_length_in_all_arguments_and_the_result_of_a_call() -> None:
    for n in (2, 3):
        assert joined(np.zeros(n), np.ones(n)).tolist() == [1] * n
    with pytest.raises(BeartypeCallHintParamViolation):
        joined(np.zeros(2), np.ones(3))
    with pytest.raises(BeartypeCallHintParamViolation):
        joined(np.zeros(2), np.ones((2, 1)))
    with pytest.raises(BeartypeCallHintReturnViolation):
        joined(np.ones(2), np.ones(2))
    assert len(Pair(np.zeros(2), np.zeros(2)).a) == 2
    with pytest.raises(BeartypeCallHintParamViolation):
        Pair(np.zeros(2), np.zeros(3))


def test_axes_of_a_generator_are_its_own() -> None:
    assert within(np.zeros(3), 2) == [2, 2]
    with pytest.raises(TypeCheckError):
        within(np.zeros(3), 4)


def test_what_has_no_shapes_is_left_as_it_is() -> None:
    def add(a: int, b: list[float]) -> float:
        return a + sum(b)

    assert checked(add) is add


def test_the_packages_are_checked() -> None:
    with pytest.raises(BeartypeCallHintParamViolation):
        paired_bootstrap(np.zeros((2, 2)), np.zeros(3, dtype=int), draws=10, rng=np.random.default_rng(0))
