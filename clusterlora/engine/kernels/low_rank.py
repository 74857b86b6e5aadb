"""Low-rank updates of a packed batch whose tokens have factors of their own, as Triton kernels.

legend   N tokens of all rows, t token of a tile, k slot, d_in width of x, r rank of a layer, R of all layers, D a layer's outputs

The equations are those of `engine.low_rank_update`. A program handles a tile of tokens of one slot and reads that slot's factors where
they are, so that no row needs a copy of them; gradients are summed over all tokens of a slot in one program and added in place, so that
no two programs write the same number. Four launches do what a fused linear takes otherwise a dozen for.
Source: Chen et al. 2023, Punica (arXiv 2310.18547), and Sheng et al. 2023, S-LoRA (arXiv 2311.03285), for inference; here for training.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false, reportMissingParameterType=false
# pyright: reportUnknownParameterType=false, reportUntypedFunctionDecorator=false

import os
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

COLUMNS = 64
"""Columns of a block of outputs, or of inputs."""
_MOST_RANKS = 64
"""Ranks of a block."""

_INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")
_BY_COLUMNS = 6
"""Numbers that describe a block of a layer's columns; see `Layout.blocks`."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the factors of a fused linear are in a slot's row of numbers, and where its layers' outputs are in a token's."""

    d_in: int
    n_ranks: int
    """R; A is [R, d_in] at the row's beginning."""
    ranks: int
    """The largest rank of a layer."""
    layers: Int[Tensor, "layer 6"]
    """Per layer with a rank: where its transposed B begins, its first row of A, its rank, its D, 0, and its first column of y."""
    blocks: Int[Tensor, "block 6"]
    """The same per block of `COLUMNS` columns of a layer, with the block's first column in place of 0."""


def layout(*, d_in: int, ranks: list[int], d_outs: list[int], offsets: list[int], columns: list[int], device: torch.device) -> Layout:
    """Return the layout of layers with these ranks; those of rank 0 have no factors.

    Args:
        offsets: where each layer's transposed B begins in a slot's row, counted from A.
        columns: each layer's first column of y.
    """
    layers, blocks, first = [], [], 0
    for rank, d_out, offset, column in zip(ranks, d_outs, offsets, columns, strict=True):
        if rank:
            layers.append((offset, first, rank, d_out, 0, column))
            blocks += [(offset, first, rank, d_out, start, column) for start in range(0, d_out, COLUMNS)]
        first += rank
    numbers = (torch.tensor(part, dtype=torch.int32, device=device).view(-1, _BY_COLUMNS) for part in (layers, blocks))
    return Layout(d_in, first, max(ranks), *numbers)


@dataclass(frozen=True, slots=True)
class Scale:
    """What multiplies the inputs of A: a row of numbers per row of the batch, or one number."""

    values: Float[Tensor, "b feature"]
    row: Int[Tensor, " N"]
    """The row of each token."""


def lower(
    x: Float[Tensor, "N d_in"], factors: Float[Tensor, "k _n"], where: Layout, tiles: Int[Tensor, "tile 4"], height: int, *,
    slot_column: int, scale: Scale | None
) -> Float[Tensor, "N R"]:
    """Return h = A (scale x) of every token of a tile; other rows are not written.

    Args:
        factors: the slots' rows, from A on; a view with any stride between rows.
        tiles: two slots, the first token, and the one after the last, of at most `height` tokens.
        slot_column: which of the two slots counts. Tiles of slot 0 are left out where it is the second: no adapter.
    """
    h = x.new_empty(len(x), where.n_ranks)
    block = _ranks_per_block(where.n_ranks)
    _lower[(len(tiles), triton.cdiv(where.n_ranks, block))](
        x, factors, *_scale_arguments(scale, x), tiles, h, x.stride(0), factors.stride(0), where.d_in, where.n_ranks,
        SLOT=slot_column, SCALED=_scaled(scale), T=height, R=block, D=2 * COLUMNS if height < COLUMNS else COLUMNS,
    )  # fmt: skip
    return h


def add_raised(
    y: Float[Tensor, "N _D"], h: Float[Tensor, "N R"], factors: Float[Tensor, "k _n"], where: Layout, tiles: Int[Tensor, "tile 4"],
    height: int, *, slot_column: int
) -> None:
    """Add B h to the columns of y that belong to each layer."""
    _add_raised[(len(tiles), len(where.blocks))](
        y, h, factors, tiles, where.blocks, y.stride(0), factors.stride(0), where.n_ranks,
        SLOT=slot_column, T=height, R=_ranks_per_block(where.ranks), C=COLUMNS,
    )  # fmt: skip


def lower_gradient(
    dy: Float[Tensor, "N _D"], factors: Float[Tensor, "k _n"], where: Layout, tiles: Int[Tensor, "tile 4"], height: int, *,
    slot_column: int
) -> Float[Tensor, "N R"]:
    """Return u = B^T dy of every token of a tile; other rows are not written."""
    u = dy.new_empty(len(dy), where.n_ranks)
    block = _ranks_per_block(where.ranks)
    _lower_gradient[(len(tiles), len(where.layers), triton.cdiv(where.ranks, block))](
        dy, factors, tiles, where.layers, u, dy.stride(0), factors.stride(0), where.n_ranks,
        SLOT=slot_column, T=height, R=block, C=2 * COLUMNS if height < COLUMNS else COLUMNS,
    )  # fmt: skip
    return u


def add_gradients(
    x: Float[Tensor, "N d_in"], h: Float[Tensor, "N R"], u: Float[Tensor, "N R"], dy: Float[Tensor, "N _D"],
    dx: Float[Tensor, "N d_in"] | None, factors: Float[Tensor, "k _n"], gradients: Float[Tensor, "k _n"] | None, where: Layout,
    tiles: Int[Tensor, "tile 4"], spans: Int[Tensor, "span 4"], height: int, *, slot_column: int, scale: Scale | None
) -> None:
    """Add scale (u A) to dx, u^T (scale x) to the gradient of A and h^T dy to that of each B; either of the two may be None.

    Args:
        gradients: laid out as `factors` are.
        spans: all tokens of a slot, as `tiles` has them.
    """
    d_blocks = triton.cdiv(where.d_in, COLUMNS)
    n_dx = 0 if dx is None else len(tiles) * d_blocks
    n_da = 0 if gradients is None else len(spans) * d_blocks
    n_db = 0 if gradients is None else len(spans) * len(where.blocks)
    _add_gradients[(n_dx + n_da + n_db,)](
        x, h, u, dy, x if dx is None else dx, factors, factors if gradients is None else gradients, *_scale_arguments(scale, x), tiles,
        spans, where.blocks, x.stride(0), dy.stride(0), x.stride(0) if dx is None else dx.stride(0), factors.stride(0),
        0 if gradients is None else gradients.stride(0), where.d_in, where.n_ranks, n_dx, n_da, d_blocks, len(where.blocks),
        SLOT=slot_column, SCALED=_scaled(scale), T=height, R=_ranks_per_block(where.n_ranks), B=_ranks_per_block(where.ranks), C=COLUMNS,
    )  # fmt: skip


def _ranks_per_block(n: int) -> int:
    """Return a power of two; matrix units take no fewer than 16."""
    return min(_MOST_RANKS, max(16, triton.next_power_of_2(n)))


def _scaled(scale: Scale | None) -> int:
    """Return 0 for no scale, 1 for a number per row, 2 for one per row and feature."""
    return 0 if scale is None else 1 if scale.values.shape[1] == 1 else 2


def _scale_arguments(scale: Scale | None, x: Tensor) -> tuple[Tensor, Tensor, int]:
    return (x, x, 0) if scale is None else (scale.values, scale.row, scale.values.stride(0))


@triton.jit
def _dot(left, right, total):
    """Return total + left right, in float32. Triton's interpreter multiplies no bfloat16."""
    if _INTERPRETED:
        left, right = left.to(tl.float32), right.to(tl.float32)
    return tl.dot(left, right, total, input_precision="ieee")


@triton.jit
def _scaled_input(x, scale, row, token, column, real, inside, x_stride, scale_stride, SCALED: tl.constexpr):
    """Return scale x of tokens [T] and columns [D], in the dtype of x; zero where a token or a column is not counted."""
    ok = real[:, None] & inside[None, :]
    values = tl.load(x + token.to(tl.int64)[:, None] * x_stride + column[None, :], mask=ok, other=0.0)
    if SCALED > 0:
        rows = tl.load(row + token, mask=real, other=0).to(tl.int64)
        if SCALED == 1:
            factor = tl.load(scale + rows * scale_stride)[:, None]
        else:
            factor = tl.load(scale + rows[:, None] * scale_stride + column[None, :], mask=ok, other=0.0)
        values = (values.to(tl.float32) * factor).to(values.dtype)
    return values


@triton.jit
def _lower(
    x, factors, scale, row, scale_stride, tiles, h, x_stride, factor_stride, d_in, n_ranks,
    SLOT: tl.constexpr, SCALED: tl.constexpr, T: tl.constexpr, R: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    tile = tiles + tl.program_id(0) * 4
    slot, first, end = tl.load(tile + SLOT).to(tl.int64), tl.load(tile + 2), tl.load(tile + 3)
    if first >= end or (SLOT == 1 and slot == 0):
        return
    token, rank = first + tl.arange(0, T), tl.program_id(1) * R + tl.arange(0, R)
    real, used = token < end, rank < n_ranks
    total = tl.zeros([T, R], tl.float32)
    for start in range(0, d_in, D):
        column = start + tl.arange(0, D)
        inside = column < d_in
        values = _scaled_input(x, scale, row, token, column, real, inside, x_stride, scale_stride, SCALED)
        a = factors + slot * factor_stride + rank[None, :] * d_in + column[:, None]
        total = _dot(values, tl.load(a, mask=used[None, :] & inside[:, None], other=0.0).to(values.dtype), total)
    tl.store(h + token.to(tl.int64)[:, None] * n_ranks + rank[None, :], total.to(h.dtype.element_ty), mask=real[:, None] & used[None, :])


@triton.jit
def _add_raised(
    y, h, factors, tiles, blocks, y_stride, factor_stride, n_ranks,
    SLOT: tl.constexpr, T: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    tile, block = tiles + tl.program_id(0) * 4, blocks + tl.program_id(1) * 6
    slot, first, end = tl.load(tile + SLOT).to(tl.int64), tl.load(tile + 2), tl.load(tile + 3)
    if first >= end or (SLOT == 1 and slot == 0):
        return
    offset, first_rank, n, d_out, start, y_column = _block(block)
    token, column = first + tl.arange(0, T), start + tl.arange(0, C)
    real, inside = token < end, column < d_out
    total = tl.zeros([T, C], tl.float32)
    for rank_start in range(0, n, R):
        rank = rank_start + tl.arange(0, R)
        used = rank < n
        of_tokens = tl.load(
            h + token.to(tl.int64)[:, None] * n_ranks + first_rank + rank[None, :], mask=real[:, None] & used[None, :], other=0.0
        )
        b = factors + slot * factor_stride + offset + rank[:, None] * d_out + column[None, :]
        b_values = tl.load(b, mask=used[:, None] & inside[None, :], other=0.0).to(of_tokens.dtype)
        total = _dot(of_tokens, b_values, total)
    out = y + token.to(tl.int64)[:, None] * y_stride + y_column + column[None, :]
    ok = real[:, None] & inside[None, :]
    tl.store(out, (tl.load(out, mask=ok, other=0.0).to(tl.float32) + total).to(y.dtype.element_ty), mask=ok)


@triton.jit
def _lower_gradient(
    dy, factors, tiles, layers, u, dy_stride, factor_stride, n_ranks,
    SLOT: tl.constexpr, T: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    tile = tiles + tl.program_id(0) * 4
    slot, first, end = tl.load(tile + SLOT).to(tl.int64), tl.load(tile + 2), tl.load(tile + 3)
    if first >= end or (SLOT == 1 and slot == 0):
        return
    offset, first_rank, n, d_out, _, y_column = _block(layers + tl.program_id(1) * 6)
    token, rank = first + tl.arange(0, T), tl.program_id(2) * R + tl.arange(0, R)
    real, used = token < end, rank < n
    total = tl.zeros([T, R], tl.float32)
    for start in range(0, d_out, C):
        column = start + tl.arange(0, C)
        inside = column < d_out
        values = tl.load(
            dy + token.to(tl.int64)[:, None] * dy_stride + y_column + column[None, :], mask=real[:, None] & inside[None, :], other=0.0
        )
        b = factors + slot * factor_stride + offset + rank[None, :] * d_out + column[:, None]
        b_values = tl.load(b, mask=used[None, :] & inside[:, None], other=0.0).to(values.dtype)
        total = _dot(values, b_values, total)
    out = u + token.to(tl.int64)[:, None] * n_ranks + first_rank + rank[None, :]
    tl.store(out, total.to(u.dtype.element_ty), mask=real[:, None] & used[None, :])


@triton.jit
def _add_gradients(
    x, h, u, dy, dx, factors, gradients, scale, row, scale_stride, tiles, spans, blocks, x_stride, dy_stride, dx_stride, factor_stride,
    gradient_stride, d_in, n_ranks, n_dx, n_da, d_blocks, n_blocks,
    SLOT: tl.constexpr, SCALED: tl.constexpr, T: tl.constexpr, R: tl.constexpr, B: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    if program < n_dx:
        _add_dx(
            u, dx, factors, scale, row, scale_stride, tiles + program // d_blocks * 4, program % d_blocks * C, dx_stride, factor_stride,
            d_in, n_ranks, SLOT, SCALED, T, R, C,
        )  # fmt: skip
    elif program < n_dx + n_da:
        number = program - n_dx
        _add_da(
            x, u, gradients, scale, row, scale_stride, spans + number // d_blocks * 4, number % d_blocks * C, x_stride, gradient_stride,
            d_in, n_ranks, SCALED, T, R, C,
        )  # fmt: skip
    else:
        number = program - n_dx - n_da
        _add_db(h, dy, gradients, spans + number // n_blocks * 4, blocks + number % n_blocks * 6, dy_stride, gradient_stride, n_ranks, T, B, C)


@triton.jit
def _add_dx(
    u, dx, factors, scale, row, scale_stride, tile, start, dx_stride, factor_stride, d_in, n_ranks,
    SLOT: tl.constexpr, SCALED: tl.constexpr, T: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    slot, first, end = tl.load(tile + SLOT).to(tl.int64), tl.load(tile + 2), tl.load(tile + 3)
    if first < end and (SLOT == 0 or slot > 0):
        token, column = first + tl.arange(0, T), start + tl.arange(0, C)
        real, inside = token < end, column < d_in
        total = tl.zeros([T, C], tl.float32)
        for rank_start in range(0, n_ranks, R):
            rank = rank_start + tl.arange(0, R)
            used = rank < n_ranks
            of_tokens = tl.load(u + token.to(tl.int64)[:, None] * n_ranks + rank[None, :], mask=real[:, None] & used[None, :], other=0.0)
            a = factors + slot * factor_stride + rank[:, None] * d_in + column[None, :]
            a_values = tl.load(a, mask=used[:, None] & inside[None, :], other=0.0).to(of_tokens.dtype)
            total = _dot(of_tokens, a_values, total)
        ok = real[:, None] & inside[None, :]
        if SCALED > 0:
            rows = tl.load(row + token, mask=real, other=0).to(tl.int64)
            if SCALED == 1:
                total = total * tl.load(scale + rows * scale_stride)[:, None]
            else:
                total = total * tl.load(scale + rows[:, None] * scale_stride + column[None, :], mask=ok, other=0.0)
        out = dx + token.to(tl.int64)[:, None] * dx_stride + column[None, :]
        tl.store(out, (tl.load(out, mask=ok, other=0.0).to(tl.float32) + total).to(dx.dtype.element_ty), mask=ok)


@triton.jit
def _add_da(
    x, u, gradients, scale, row, scale_stride, span, start, x_stride, gradient_stride, d_in, n_ranks,
    SCALED: tl.constexpr, T: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    slot, first, end = tl.load(span).to(tl.int64), tl.load(span + 2), tl.load(span + 3)
    if first < end:
        column = start + tl.arange(0, C)
        inside = column < d_in
        for rank_start in range(0, n_ranks, R):
            rank = rank_start + tl.arange(0, R)
            used = rank < n_ranks
            total = tl.zeros([R, C], tl.float32)
            for token_start in range(first, end, T):
                token = token_start + tl.arange(0, T)
                real = token < end
                values = _scaled_input(x, scale, row, token, column, real, inside, x_stride, scale_stride, SCALED)
                of_tokens = tl.load(
                    u + token.to(tl.int64)[None, :] * n_ranks + rank[:, None], mask=used[:, None] & real[None, :], other=0.0
                )
                total = _dot(of_tokens, values, total)
            out = gradients + slot * gradient_stride + rank[:, None] * d_in + column[None, :]
            ok = used[:, None] & inside[None, :]
            tl.store(out, tl.load(out, mask=ok, other=0.0) + total.to(gradients.dtype.element_ty), mask=ok)


@triton.jit
def _add_db(
    h, dy, gradients, span, block, dy_stride, gradient_stride, n_ranks, T: tl.constexpr, R: tl.constexpr, C: tl.constexpr
):  # fmt: skip
    slot, first, end = tl.load(span).to(tl.int64), tl.load(span + 2), tl.load(span + 3)
    if first < end:
        offset, first_rank, n, d_out, start, y_column = _block(block)
        column = start + tl.arange(0, C)
        inside = column < d_out
        for rank_start in range(0, n, R):
            rank = rank_start + tl.arange(0, R)
            used = rank < n
            total = tl.zeros([R, C], tl.float32)
            for token_start in range(first, end, T):
                token = token_start + tl.arange(0, T)
                real = token < end
                values = tl.load(
                    dy + token.to(tl.int64)[:, None] * dy_stride + y_column + column[None, :], mask=real[:, None] & inside[None, :], other=0.0
                )
                of_tokens = tl.load(
                    h + token.to(tl.int64)[None, :] * n_ranks + first_rank + rank[:, None], mask=used[:, None] & real[None, :], other=0.0
                )
                total = _dot(of_tokens, values, total)
            out = gradients + slot * gradient_stride + offset + rank[:, None] * d_out + column[None, :]
            ok = used[:, None] & inside[None, :]
            tl.store(out, tl.load(out, mask=ok, other=0.0) + total.to(gradients.dtype.element_ty), mask=ok)


@triton.jit
def _block(block):
    """Return where B begins, the layer's first rank, its rank, its outputs, the block's first column, and the layer's column of y."""
    return tl.load(block), tl.load(block + 1), tl.load(block + 2), tl.load(block + 3), tl.load(block + 4), tl.load(block + 5)
