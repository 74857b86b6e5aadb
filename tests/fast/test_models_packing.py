"""Packed rows hold every token once, and low-rank updates of packed rows equal those of each row alone."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clusterlora.chat.encoder import TokenSequence
from clusterlora.engine.low_rank_update import LowRankUpdate
from clusterlora.engine.packing import Padding, n_rows_that_fit, pack, pack_batch
from clusterlora.engine.ragged import RaggedRows

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
    ids = [[100 * row + position for position in range(length)] for row, length in enumerate(lengths)]
    predicting = [sorted(data.draw(st.sets(st.integers(0, length - 1), min_size=1))) for length in lengths]
    rows = RaggedRows.with_predictions_in(ids, [[range(i, i + 1) for i in positions] for positions in predicting])
    batch = pack_batch(rows, padding)
    read = batch.ids[batch.predicting_index[batch.predicting.real]].tolist()
    assert read == [row[i] for row, positions in zip(ids, predicting, strict=True) for i in positions]
    assert batch.ids[batch.tokens.real].tolist() == [
        token for row, positions in zip(ids, predicting, strict=True) for token in row[: positions[-1] + 1]
    ]


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6), multiple=st.sampled_from([1, 4]), data=st.data())
def test_ragged_rows_become_a_rectangle_and_are_selected_without_losing_a_token(
    lengths: list[int], multiple: int, data: st.DataObject
) -> None:
    flags = [data.draw(st.lists(st.booleans(), min_size=length, max_size=length)) for length in lengths]
    sequences = [TokenSequence(tuple(range(10 * row, 10 * row + len(row_flags))), tuple(row_flags)) for row, row_flags in enumerate(flags)]
    rows = RaggedRows.of(sequences)
    ids, predicts = rows.padded(pad_id=-1, multiple=multiple)
    assert ids.shape == predicts.shape == (len(rows), multiple * -(-max(lengths) // multiple))
    assert [[i for i in row if i >= 0] for row in ids.tolist()] == [list(sequence.ids) for sequence in sequences]
    assert not predicts[ids < 0].any()
    assert predicts.sum().item() == sum(sequence.n_response_tokens for sequence in sequences)
    expected = [i for s in sequences for i, is_response in zip(s.ids[1:], s.is_response[1:], strict=True) if is_response]
    assert rows.targets.tolist() == expected
    assert ids[:, 1:][predicts[:, :-1]].tolist() == expected
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=8))
    some, same = rows.select(torch.tensor(chosen)), RaggedRows.of([sequences[row] for row in chosen])
    assert [getattr(some, name).tolist() for name in ("ids", "predicts", "lengths")] == [
        getattr(same, name).tolist() for name in ("ids", "predicts", "lengths")
    ]


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
