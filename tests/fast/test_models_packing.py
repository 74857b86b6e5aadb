"""Packed rows hold every token once, and low-rank updates of packed rows equal those of each row alone."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clusterlora.engine.low_rank_update import LowRankUpdate
from clusterlora.engine.packing import Padding, n_rows_that_fit, pack, pack_batch

pytestmark = pytest.mark.numeric

PADDINGS = st.builds(Padding, st.sampled_from([1, 4, 16]), uniform=st.booleans())


@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=8), padding=PADDINGS)
def test_packed_rows_hold_every_token_once_in_segments_that_cover_the_rows(lengths: list[int], padding: Padding) -> None:
    packing = pack(torch.tensor(lengths), padding)
    real = list(zip(packing.row[packing.real].tolist(), packing.position[packing.real].tolist(), strict=True))
    assert real == [(row, position) for row, length in enumerate(lengths) for position in range(length)]
    assert [row for segment in packing.segments for row in range(segment.rows.start, segment.rows.stop)] == list(range(len(lengths)))
    for segment in packing.segments:
        assert segment.view(packing.row)[:, 0].tolist() == list(range(segment.rows.start, segment.rows.stop))
        assert segment.length % padding.multiple == 0
    assert len(packing.segments) == 1 or not padding.uniform


@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=6), padding=PADDINGS, data=st.data())
def test_a_packed_batch_has_every_token_up_to_the_last_predicting_one(lengths: list[int], padding: Padding, data: st.DataObject) -> None:
    predicts = torch.zeros(len(lengths), 12, dtype=torch.bool)
    for row, length in enumerate(lengths):
        predicts[row, sorted(data.draw(st.sets(st.integers(0, length - 1), min_size=1)))] = True
    ids = torch.arange(predicts.numel()).view(predicts.shape)
    batch = pack_batch(ids, predicts, padding)
    assert batch.ids[batch.predicting_index[batch.predicting.real]].tolist() == ids[predicts].tolist()
    last = [int(row.nonzero()[-1]) for row in predicts]
    assert batch.ids[batch.tokens.real].tolist() == [int(ids[row, position]) for row, end in enumerate(last) for position in range(end + 1)]


def test_rows_fit_into_a_token_budget_with_their_padding() -> None:
    lengths = [2000, 100, 90, 10]
    assert [n_rows_that_fit(lengths, n, Padding(1, uniform=True)) for n in (1, 2000, 3999, 4000, 8000)] == [1, 1, 1, 2, 4]
    assert [n_rows_that_fit(lengths, n, Padding(16)) for n in (1, 2111, 2112, 2208, 2224)] == [1, 1, 2, 3, 4]


@given(
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=5),
    ranks=st.lists(st.integers(0, 4), min_size=1, max_size=3),
    padding=PADDINGS,
    shared=st.booleans(),
)
def test_a_low_rank_update_equals_autograd_on_each_row(lengths: list[int], ranks: list[int], padding: Padding, *, shared: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    packing, d_in, d_outs = pack(torch.tensor(lengths), padding), 6, [5 + n for n in range(len(ranks))]

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    n_rows, n_tokens = 1 if shared else len(lengths), len(packing.row)
    update = LowRankUpdate(
        draw(n_rows, sum(ranks), d_in), tuple(draw(n_rows, rank, d_out) for rank, d_out in zip(ranks, d_outs, strict=True))
    )
    x, dys = draw(n_tokens, d_in), [draw(n_tokens, d_out) for d_out in d_outs]
    leaves = [part.clone().requires_grad_() for part in (x, *update.factors)]
    of_token = torch.zeros_like(packing.row) if shared else packing.row
    h = torch.einsum("nrd,nd->nr", leaves[1][of_token], leaves[0]).split(ranks, dim=1)
    expected = [torch.einsum("nr,nrd->nd", part, b[of_token]) for part, b in zip(h, leaves[2:], strict=True)]

    ys = [torch.zeros_like(dy) for dy in dys]
    hs = update.forward(x, ys, packing.segments)
    dx, gradient = torch.zeros_like(x), update.empty_like()
    update.backward(x, hs, dys, dx, packing.segments, gradient)

    torch.autograd.backward(expected, dys)
    for ours, autograd in zip([*ys, dx, *gradient.factors], [*expected, *(leaf.grad for leaf in leaves)], strict=True):
        torch.testing.assert_close(ours, autograd if autograd is not None else torch.zeros_like(ours))
