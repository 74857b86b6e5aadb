"""The kernels of low-rank updates, interpreted where there is no GPU, against the equations in float64."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from clusterlora.engine import kernels
from clusterlora.engine.packing import Padding, pack
from clusterlora.engine.ragged_attention import row_starts
from clusterlora.engine.token_tiles import token_tiles

low_rank = pytest.importorskip("clusterlora.engine.kernels.low_rank", reason="triton is for Linux only")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# Slot of each row, frozen slot of each, and tokens of each.
SLOTS, FROZEN, LENGTHS = [2, 2, 0, 3], [1, 1, 0, 2], [20, 5, 33, 1]


@dataclass
class Case:
    d_in: int
    ranks: list[int]
    d_outs: list[int]
    dtype: torch.dtype

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.offsets = (
            sum(self.ranks) * self.d_in + np.cumsum([0, *(r * d for r, d in zip(self.ranks, self.d_outs, strict=True))])
        ).tolist()
        self.columns = np.cumsum([0, *self.d_outs]).tolist()
        n = sum(LENGTHS) + 3  # the last tokens are in no row

        def random(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(DEVICE)

        # Rows of a wider matrix, as the slots of a fused LoRA are.
        self.factors = (0.3 * random(4, self.offsets[-1] + 16)).to(self.dtype)[:, : self.offsets[-1]]
        self.gradients = random(4, self.offsets[-1] + 16)[:, : self.offsets[-1]]
        self.x, self.dx = (random(n, self.d_in).to(self.dtype) for _ in range(2))
        self.y, self.dy = (random(n, self.columns[-1]).to(self.dtype) for _ in range(2))
        self.scales = {"none": None, "of rows": random(len(LENGTHS), 1), "of features": random(len(LENGTHS), self.d_in + 9)[:, 9:]}
        self.layout = low_rank.layout(
            d_in=self.d_in, ranks=self.ranks, d_outs=self.d_outs, offsets=self.offsets[:-1], columns=self.columns[:-1], device=DEVICE
        )

    def tiles(self, column: int) -> Any:
        packing = pack(torch.tensor(LENGTHS), Padding(1, ragged=True))
        made = token_tiles(packing, SLOTS, FROZEN)
        return low_rank.Tiles(made.tiles.to(DEVICE), made.spans.to(DEVICE), made.starts.to(DEVICE), made.height, column)

    def expected(self, scale: Tensor | None, slots: list[int], *, frozen: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Return y, dx and the gradients after an update, in float64."""
        y, dx, gradients = (part.double().cpu().clone() for part in (self.y, self.dx, self.gradients))
        start = 0
        for row, (slot, length) in enumerate(zip(slots, LENGTHS, strict=True)):
            tokens = slice(start, start + length)
            start += length
            if frozen and slot == 0:
                continue
            factors = self.factors[slot].double().cpu()
            a = factors[: self.offsets[0]].view(-1, self.d_in)
            if scale is not None:
                a = a * scale[row].double().cpu()
            x, dy = self.x[tokens].double().cpu(), self.dy[tokens].double().cpu()
            h, us, first = x @ a.T, [], 0
            for rank, d_out, offset, column in zip(self.ranks, self.d_outs, self.offsets, self.columns, strict=False):
                b, own = factors[offset : offset + rank * d_out].view(rank, d_out), dy[:, column : column + d_out]
                y[tokens, column : column + d_out] += h[:, first : first + rank] @ b
                us.append(own @ b.T)
                gradients[slot, offset : offset + rank * d_out] += (h[:, first : first + rank].T @ own).flatten()
                first += rank
            u = torch.cat(us, dim=1)
            dx[tokens] += u @ a
            da = u.T @ x
            gradients[slot, : self.offsets[0]] += (da if scale is None else da * scale[row].double().cpu()).flatten()
        return y, dx, gradients


CASES = {
    "aligned": (96, [4, 4, 8], [144, 32, 80]),
    "odd widths": (50, [3, 3], [70, 36]),
    "one layer of a rank above a block": (40, [70], [48]),
    "a layer without factors": (48, [5, 0], [64, 32]),
}


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.whole)])
@pytest.mark.parametrize("scale", ["none", "of rows", "of features"])
@pytest.mark.parametrize("name", CASES)
def test_updates_and_gradients_are_those_of_the_equations(name: str, scale: str, dtype: torch.dtype) -> None:
    case = Case(*CASES[name], dtype=dtype)
    factor, tiles = case.scales[scale], case.tiles(0)
    expected = case.expected(factor, SLOTS, frozen=False)
    h = low_rank.lower(case.x, case.factors, case.layout, tiles, factor)
    low_rank.add_raised(case.y, h, case.factors, case.layout, tiles)
    u = low_rank.lower_gradient(case.dy, case.factors, case.layout, tiles)
    low_rank.add_gradients(case.x, h, u, case.dy, case.dx, case.factors, case.gradients, case.layout, tiles, factor)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for one, other in zip((case.y, case.dx, case.gradients), expected, strict=True):
        assert float((one.double().cpu() - other).norm() / other.norm()) < tolerance


def test_frozen_factors_change_outputs_and_input_gradients_alone_and_slot_0_is_none() -> None:
    case = Case(48, [4], [64], dtype=torch.float32)
    tiles, before = case.tiles(1), case.gradients.clone()
    y, dx, _ = case.expected(None, FROZEN, frozen=True)
    h = low_rank.lower(case.x, case.factors, case.layout, tiles, None)
    low_rank.add_raised(case.y, h, case.factors, case.layout, tiles)
    u = low_rank.lower_gradient(case.dy, case.factors, case.layout, tiles)
    low_rank.add_gradients(case.x, h, u, case.dy, case.dx, case.factors, None, case.layout, tiles, None)
    torch.testing.assert_close(case.y.double().cpu(), y, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(case.dx.double().cpu(), dx, rtol=1e-5, atol=1e-5)
    assert torch.equal(case.gradients, before)


rows = st.lists(st.tuples(st.integers(0, 5), st.integers(1, 150)), min_size=1, max_size=12)


@given(rows, st.sampled_from([Padding(1, ragged=True), Padding(32, uniform=True)]))
def test_every_token_of_a_row_is_in_one_tile_of_its_slot(rows: list[tuple[int, int]], padding: Padding) -> None:
    rows.sort()
    slots, frozen, lengths = [slot for slot, _ in rows], [slot % 2 for slot, _ in rows], [length for _, length in rows]
    packing = pack(torch.tensor(lengths), padding)
    made = token_tiles(packing, slots, frozen)
    owner = torch.full((len(packing.row),), -1)
    for slot, of_frozen, first, end, row in made.tiles.tolist():
        if first < end:
            assert (slot, of_frozen) == (slots[row], frozen[row])
            assert end - first <= made.height
            assert (owner[first:end] == -1).all()
            owner[first:end] = row
    assert torch.equal(owner[packing.real], packing.row[packing.real])
    spans = [span for span in made.spans.tolist() if span[2] < span[3]]
    assert [row for span in spans for row in range(span[2], span[3])] == list(range(len(rows)))
    assert all(slots[row] == span[0] for span in spans for row in range(span[2], span[3]))
    assert made.starts[: len(rows) + 1].diff().tolist() == packing.widths.tolist()


@given(st.lists(st.integers(1, 400), min_size=1, max_size=40))
def test_a_ragged_batch_is_rows_without_padding_and_few_tokens_that_fill_it(lengths: list[int]) -> None:
    packing = pack(torch.tensor(lengths), Padding(1, ragged=True))
    n, total = len(packing.row), sum(lengths)
    assert packing.real.tolist() == list(range(total))
    assert total <= n <= max(1.25 * total, total + 128)
    starts = row_starts(packing)
    widths = starts.starts.diff()
    assert (starts.starts[0], starts.starts[-1]) == (0, n)
    assert widths[: len(lengths)].tolist() == lengths
    assert 0 <= int(widths.min()) <= int(widths.max()) <= starts.longest
    assert int(packing.position.max()) < starts.longest


@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels run on this GPU")
def test_where_no_kernel_runs_one_line_says_why_and_pytorch_computes(caplog: pytest.LogCaptureFixture) -> None:
    assert not kernels._work.__wrapped__(0)
    (record,) = caplog.records
    assert "no kernel runs on GPU 0" in record.getMessage()
    assert "is there a C compiler (gcc)?" in record.getMessage()
