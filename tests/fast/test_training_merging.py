"""Laws of merging, on random factors of a few layers."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clusterlora.adapters.merging import merge_factors
from clusterlora.engine.stacked import Factors
from clusterlora.method_settings import MergeSettings

pytestmark = pytest.mark.numeric

SHAPES = {"q_proj": (7, 5), "v_proj": (4, 9)}
KINDS = [MergeSettings(kind="average"), MergeSettings(kind="ties"), MergeSettings(kind="dare")]


def random_factors(rank: int, seed: int) -> Factors:
    generator = torch.Generator().manual_seed(seed)
    return {
        layer: (torch.randn(rank, d_in, generator=generator), torch.randn(d_out, rank, generator=generator))
        for layer, (d_out, d_in) in SHAPES.items()
    }


def update(factors: Factors, layer: str) -> torch.Tensor:
    a, b = factors[layer]
    return b.double() @ a.double()


def assert_same(left: Factors, right: Factors) -> None:
    for layer in SHAPES:
        torch.testing.assert_close(update(left, layer), update(right, layer), rtol=1e-5, atol=1e-5)


@given(rank=st.integers(1, 4), n=st.integers(1, 5), seed=st.integers(0, 999), weights=st.lists(st.integers(1, 9), min_size=5, max_size=5))
@settings(max_examples=40)
def test_merging_copies_of_an_adapter_returns_it_and_loses_nothing(rank: int, n: int, seed: int, weights: Sequence[int]) -> None:
    adapter = random_factors(rank, seed)
    copies = {f"copy-{i}": adapter for i in range(n)}
    share = {name: float(weight) for name, weight in zip(copies, weights, strict=False)}
    for merging in (MergeSettings(kind="average"), MergeSettings(kind="ties", density=1.0), MergeSettings(kind="dare", density=1.0)):
        merged, energy = merge_factors(copies, share, merging, rank=rank, seed=0)
        assert_same(merged, adapter)
        assert energy == pytest.approx(1.0)


@pytest.mark.parametrize("merging", KINDS, ids=lambda merging: merging.kind)
@given(seed=st.integers(0, 999), order=st.permutations(range(4)))
@settings(max_examples=25)
def test_merging_does_not_depend_on_the_order_of_the_parts(merging: MergeSettings, seed: int, order: list[int]) -> None:
    parts = {f"part-{i}": random_factors(2, 10 * seed + i) for i in range(4)}
    weights = {name: i + 1.0 for i, name in enumerate(parts)}
    shuffled = {f"part-{i}": parts[f"part-{i}"] for i in order}
    first, energy = merge_factors(parts, weights, merging, rank=9, seed=seed)
    second, same_energy = merge_factors(shuffled, weights, merging, rank=9, seed=seed)
    assert_same(first, second)
    assert energy == pytest.approx(same_energy)


@given(seed=st.integers(0, 999), rank=st.integers(1, 3))
@settings(max_examples=25)
def test_the_average_is_the_mean_of_products_and_its_truncation_is_the_best_there_is(seed: int, rank: int) -> None:
    parts = {f"part-{i}": random_factors(3, 10 * seed + i) for i in range(3)}
    weights = {"part-0": 1.0, "part-1": 2.0, "part-2": 5.0}
    merged, energy = merge_factors(parts, weights, MergeSettings(), rank=rank, seed=0)
    kept = total = 0.0
    for layer in SHAPES:
        mean = sum(weights[name] / 8 * update(factors, layer) for name, factors in parts.items())
        assert isinstance(mean, torch.Tensor)
        singular = torch.linalg.svdvals(mean)
        lost = torch.linalg.matrix_norm(mean - update(merged, layer))
        assert float(lost) == pytest.approx(float(singular[rank:].square().sum().sqrt()), rel=1e-4, abs=1e-5)
        kept, total = kept + float(singular[:rank].square().sum()), total + float(singular.square().sum())
    assert energy == pytest.approx(kept / total, rel=1e-9)


def test_ties_by_hand() -> None:
    """Density 1/2 of [4, 1] and [-3, 2] keeps 4 and -3; the sum elects plus; only the first agrees, so it is the mean alone."""
    one, other = ({"w": (torch.tensor([row]), torch.tensor([[1.0]]))} for row in ([4.0, 1.0], [-3.0, 2.0]))
    merged, _ = merge_factors({"a": one, "b": other}, {"a": 1.0, "b": 1.0}, MergeSettings(kind="ties", density=0.5), rank=1, seed=0)
    torch.testing.assert_close(update(merged, "w"), torch.tensor([[4.0, 0.0]], dtype=torch.float64))


def test_dare_is_unbiased_and_drops_what_it_says() -> None:
    ones = {"w": (torch.ones(1, 200), torch.ones(200, 1))}
    merged, _ = merge_factors({"a": ones}, {"a": 1.0}, MergeSettings(kind="dare", density=0.25), rank=200, seed=3)
    values = update(merged, "w")
    dropped = values.abs() < 1e-3
    # 40,000 entries, each kept with probability 1/4: six standard deviations are 0.013.
    assert float(dropped.double().mean()) == pytest.approx(0.75, abs=0.013)
    torch.testing.assert_close(values[~dropped], torch.full_like(values[~dropped], 4.0), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("merging", KINDS, ids=lambda merging: merging.kind)
def test_untrained_adapters_merge_to_nothing(merging: MergeSettings) -> None:
    zero = {layer: (a, torch.zeros_like(b)) for layer, (a, b) in random_factors(2, 0).items()}
    merged, energy = merge_factors({"a": zero, "b": zero}, {"a": 1.0, "b": 1.0}, merging, rank=2, seed=0)
    assert all(not update(merged, layer).any() for layer in SHAPES)
    assert energy == 1.0
