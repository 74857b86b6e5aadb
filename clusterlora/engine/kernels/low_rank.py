"""Low-rank updates of a packed batch whose rows have factors of their own, as Triton kernels.

legend   N tokens of all rows, t token of a tile, k slot, d_in width of x, r rank of a layer, R of all layers, D a layer's outputs

The equations are those of `engine.low_rank_update`. A program handles a tile of tokens of one row and reads the factors of its slot where
they are, so that no row needs a copy of them; gradients are summed over all rows of a slot in one program and added in place, so that no
two programs write the same number. Four launches do what a fused linear takes otherwise a dozen for.
Source: Chen et al. 2023, Punica (arXiv 2310.18547), and Sheng et al. 2023, S-LoRA (arXiv 2311.03285), for inference; here for training.
"""

import os
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

COLUMNS = 128
"""Columns of a block of outputs, or of inputs."""
_TOKENS = {torch.bfloat16: 64, torch.float32: 32}
"""Tokens at a time of a sum over the tokens of a slot. Products of float32 take no matrix unit: large ones are compiled for minutes."""
_MOST_RANKS = {torch.bfloat16: 64, torch.float32: 16}
"""Ranks of a block."""
_HIGH = 64
"""Tokens of a tile of a large batch; those of a small one have fewer, and take more columns at a time."""
_UNIT = 16

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
    """The same per block of `COLUMNS` columns of a layer, with the block's number in place of 0."""
    unit: int
    """What B, D and y are counted in: the compiler loads several numbers at once only where it knows that it begins at a multiple."""


def layout(*, d_in: int, ranks: list[int], d_outs: list[int], offsets: list[int], columns: list[int], device: torch.device) -> Layout:
    """Return the layout of layers with these ranks; those of rank 0 have no factors.

    Args:
        offsets: where each layer's transposed B begins in a slot's row, counted from A.
        columns: each layer's first column of y.
    """
    layers, blocks, first = [], [], 0
    unit = 1 if any(n % _UNIT for n in (*offsets, *d_outs, *columns)) else _UNIT
    for rank, d_out, offset, column in zip(ranks, d_outs, offsets, columns, strict=True):
        if rank:
            of_layer = (offset // unit, first, rank, d_out // unit)
            layers.append((*of_layer, 0, column // unit))
            blocks += [(*of_layer, number, column // unit) for number in range(triton.cdiv(d_out, COLUMNS))]
        first += rank
    of_layers, of_blocks = (torch.tensor(part, dtype=torch.int32, device=device).view(-1, _BY_COLUMNS) for part in (layers, blocks))
    return Layout(d_in, first, max(ranks), of_layers, of_blocks, unit)


@dataclass(frozen=True, slots=True)
class Tiles:
    """Which tokens a program handles.

    Tiles have two slots, the first token, the one after the last, and the row; spans have two slots, the first row, and the one after
    the last. Empty ones fill up. Of the two slots the first is of trained factors and the second of frozen ones, in which 0 is none.
    """

    tiles: Int[Tensor, "tile 5"]
    spans: Int[Tensor, "span 4"]
    starts: Int[Tensor, " row"]
    """The first token of each row, and the number of all tokens of rows."""
    height: int
    """The most tokens of a tile: 16 or more."""
    column: int
    """Which of the two slots counts."""


def lower(
    x: Float[Tensor, "N d_in"], factors: Float[Tensor, "k _n"], where: Layout, tiles: Tiles, scale: Float[Tensor, "b _feature"] | None
) -> Float[Tensor, "N R"]:
    """Return h = A (scale x) of every token of a tile; other rows are not written.

    Args:
        factors: the slots' rows, from A on, in the dtype of x; a view with any stride between rows.
        scale: what multiplies the inputs of each row, or one number for all of a row's.
    """
    h = x.new_empty(len(x), where.n_ranks)
    block = _ranks_per_block(where.n_ranks, x)
    _lower[(len(tiles.tiles), triton.cdiv(where.n_ranks, block))](
        x, factors, *_scale(scale, x), tiles.tiles, h, x.stride(0), factors.stride(0), where.d_in, where.n_ranks,
        SLOT=tiles.column, SCALED=_scaled(scale), T=tiles.height, R=block, D=_columns_at_a_time(tiles.height, x), num_stages=_stages(x),
    )  # fmt: skip
    return h


def add_raised(y: Float[Tensor, "N _D"], h: Float[Tensor, "N R"], factors: Float[Tensor, "k _n"], where: Layout, tiles: Tiles) -> None:
    """Add B h to the columns of y that belong to each layer."""
    _add_raised[(len(tiles.tiles), len(where.blocks))](
        y, h, factors, tiles.tiles, where.blocks, y.stride(0), factors.stride(0), where.n_ranks,
        SLOT=tiles.column, UNIT=where.unit, T=tiles.height, R=_ranks_per_block(where.ranks, y), C=COLUMNS, num_stages=_stages(y),
    )  # fmt: skip


def lower_gradient(dy: Float[Tensor, "N _D"], factors: Float[Tensor, "k _n"], where: Layout, tiles: Tiles) -> Float[Tensor, "N R"]:
    """Return u = B^T dy of every token of a tile; other rows are not written."""
    u = dy.new_empty(len(dy), where.n_ranks)
    block = _ranks_per_block(where.ranks, dy)
    _lower_gradient[(len(tiles.tiles), len(where.layers), triton.cdiv(where.ranks, block))](
        dy, factors, tiles.tiles, where.layers, u, dy.stride(0), factors.stride(0), where.n_ranks,
        SLOT=tiles.column, UNIT=where.unit, T=tiles.height, R=block, C=_columns_at_a_time(tiles.height, dy), num_stages=_stages(dy),
    )  # fmt: skip
    return u


def add_gradients(
    x: Float[Tensor, "N d_in"], h: Float[Tensor, "N R"], u: Float[Tensor, "N R"], dy: Float[Tensor, "N _D"],
    dx: Float[Tensor, "N d_in"] | None, factors: Float[Tensor, "k _n"], gradients: Float[Tensor, "k _n"] | None, where: Layout,
    tiles: Tiles, scale: Float[Tensor, "b _feature"] | None
) -> None:  # fmt: skip
    """Add scale (u A) to dx, u^T (scale x) to the gradient of A and h^T dy to that of each B; either of the two may be None.

    Args:
        gradients: laid out as `factors` are.
    """
    d_blocks, n_spans = triton.cdiv(where.d_in, COLUMNS), len(tiles.spans)
    n_dx = 0 if dx is None else len(tiles.tiles) * d_blocks
    n_da = 0 if gradients is None else n_spans * d_blocks
    n_db = 0 if gradients is None else n_spans * len(where.blocks)
    _add_gradients[(n_dx + n_da + n_db,)](
        x, h, u, dy, x if dx is None else dx, factors, factors if gradients is None else gradients, *_scale(scale, x), tiles.tiles,
        tiles.spans, tiles.starts, where.blocks, x.stride(0), dy.stride(0), x.stride(0) if dx is None else dx.stride(0), factors.stride(0),
        0 if gradients is None else gradients.stride(0), where.d_in, where.n_ranks, n_dx, n_da, d_blocks, len(where.blocks),
        SLOT=tiles.column, UNIT=where.unit, SCALED=_scaled(scale), T=tiles.height, S=_TOKENS[x.dtype], R=_ranks_per_block(where.n_ranks, x),
        B=_ranks_per_block(where.ranks, x), C=COLUMNS, num_stages=_stages(x),
    )  # fmt: skip


def _ranks_per_block(n: int, x: Tensor) -> int:
    """Return a power of two; matrix units take no fewer than 16."""
    return min(_MOST_RANKS[x.dtype], max(16, triton.next_power_of_2(n)))


def _columns_at_a_time(height: int, x: Tensor) -> int:
    """Return the columns of a step of a sum over columns."""
    columns = COLUMNS if x.dtype == torch.bfloat16 else COLUMNS // 2
    return columns if height >= _HIGH else 2 * columns


def _stages(x: Tensor) -> int:
    """Return how many steps of a sum are loaded ahead: with more, float32 would not fit in the shared memory of smaller GPUs."""
    return 3 if x.dtype == torch.bfloat16 else 1


def _scaled(scale: Tensor | None) -> int:
    """Return 0 for no scale, 1 for a number per row, 2 for one per row and feature."""
    return 0 if scale is None else 1 if scale.shape[1] == 1 else 2


def _scale(scale: Tensor | None, x: Tensor) -> tuple[Tensor, int]:
    return (x, 0) if scale is None else (scale, scale.stride(0))


@triton.jit
def _dot(left, right, total):
    """Return total + left right, in float32. Triton's interpreter multiplies no bfloat16."""
    if _INTERPRETED:
        left, right = left.to(tl.float32), right.to(tl.float32)
    return tl.dot(left, right, total, input_precision="ieee")


@triton.jit
def _lower(
    x, factors, scale, scale_stride, tiles, h, x_stride, factor_stride, d_in, n_ranks,
    SLOT: tl.constexpr, SCALED: tl.constexpr, T: tl.constexpr, R: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    tile = tiles + tl.program_id(0) * 5
    slot, first, end = tl.load(tile + SLOT).to(tl.int64), tl.load(tile + 2), tl.load(tile + 3)
    if first >= end or (SLOT == 1 and slot == 0):
        return
    scale += tl.load(tile + 4).to(tl.int64) * scale_stride
    token, rank = first + tl.arange(0, T), tl.program_id(1) * R + tl.arange(0, R)
    real, used = token < end, rank < n_ranks
    total = tl.zeros([T, R], tl.float32)
    for start in range(0, d_in, D):
        column = start + tl.arange(0, D)
        inside = column < d_in
        values = tl.load(x + token.to(tl.int64)[:, None] * x_stride + column[None, :], mask=real[:, None] & inside[None, :], other=0.0)
        a_at = factors + slot * factor_stride + rank[None, :] * d_in + column[:, None]
        a = tl.load(a_at, mask=used[None, :] & inside[:, None], other=0.0)
        if SCALED == 2:
            a = (a.to(tl.float32) * tl.load(scale + column, mask=inside, other=0.0)[:, None]).to(a.dtype)
        total = _dot(values, a, total)
    if SCALED == 1:
        total = total * tl.load(scale)
    tl.store(h + token.to(tl.int64)[:, None] * n_ranks + rank[None, :], total.to(h.dtype.element_ty), mask=real[:, None] & used[None, :])


@triton.jit
def _add_raised(
    y, h, factors, tiles, blocks, y_stride, factor_stride, n_ranks,
    SLOT: tl.constexpr, UNIT: tl.constexpr, T: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    tile = tiles + tl.program_id(0) * 5
    slot, first, end = tl.load(tile + SLOT).to(tl.int64), tl.load(tile + 2), tl.load(tile + 3)
    if first >= end or (SLOT == 1 and slot == 0):
        return
    offset, first_rank, n, d_out, number, y_column = _block(blocks + tl.program_id(1) * 6, UNIT)
    token, column = first + tl.arange(0, T), number * C + tl.arange(0, C)
    real, inside = token < end, column < d_out
    out = y + token.to(tl.int64)[:, None] * y_stride + y_column + column[None, :]
    ok = real[:, None] & inside[None, :]
    total = tl.load(out, mask=ok, other=0.0).to(tl.float32)
    for rank_start in range(0, n, R):
        rank = rank_start + tl.arange(0, R)
        used = rank < n
        of_tokens = tl.load(
            h + token.to(tl.int64)[:, None] * n_ranks + first_rank + rank[None, :], mask=real[:, None] & used[None, :], other=0.0
        )
        b = factors + slot * factor_stride + offset + rank[:, None] * d_out + column[None, :]
        total = _dot(of_tokens, tl.load(b, mask=used[:, None] & inside[None, :], other=0.0), total)
    tl.store(out, total.to(y.dtype.element_ty), mask=ok)


@triton.jit
def _lower_gradient(
    dy, factors, tiles, layers, u, dy_stride, factor_stride, n_ranks,
    SLOT: tl.constexpr, UNIT: tl.constexpr, T: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    tile = tiles + tl.program_id(0) * 5
    slot, first, end = tl.load(tile + SLOT).to(tl.int64), tl.load(tile + 2), tl.load(tile + 3)
    if first >= end or (SLOT == 1 and slot == 0):
        return
    offset, first_rank, n, d_out, _, y_column = _block(layers + tl.program_id(1) * 6, UNIT)
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
        total = _dot(values, tl.load(b, mask=used[None, :] & inside[:, None], other=0.0), total)
    out = u + token.to(tl.int64)[:, None] * n_ranks + first_rank + rank[None, :]
    tl.store(out, total.to(u.dtype.element_ty), mask=real[:, None] & used[None, :])


@triton.jit(do_not_specialize=["n_dx", "n_da", "d_blocks", "n_blocks"])
def _add_gradients(
    x, h, u, dy, dx, factors, gradients, scale, scale_stride, tiles, spans, starts, blocks, x_stride, dy_stride, dx_stride, factor_stride,
    gradient_stride, d_in, n_ranks, n_dx, n_da, d_blocks, n_blocks,
    SLOT: tl.constexpr, UNIT: tl.constexpr, SCALED: tl.constexpr, T: tl.constexpr, S: tl.constexpr, R: tl.constexpr, B: tl.constexpr,
    C: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    if program < n_dx:
        _add_dx(
            u, dx, factors, scale, scale_stride, tiles + program // d_blocks * 5, program % d_blocks * C, dx_stride, factor_stride, d_in,
            n_ranks, SLOT, SCALED, T, R, C,
        )  # fmt: skip
    elif program < n_dx + n_da:
        number = program - n_dx
        _add_da(
            x, u, gradients, scale, scale_stride, spans + number // d_blocks * 4, starts, number % d_blocks * C, x_stride,
            gradient_stride, d_in, n_ranks, SCALED, S, R, C,
        )  # fmt: skip
    else:
        number = program - n_dx - n_da
        _add_db(
            h, dy, gradients, spans + number // n_blocks * 4, starts, blocks + number % n_blocks * 6, dy_stride, gradient_stride, n_ranks,
            UNIT, S, B, C,
        )  # fmt: skip


@triton.jit
def _add_dx(
    u, dx, factors, scale, scale_stride, tile, start, dx_stride, factor_stride, d_in, n_ranks,
    SLOT: tl.constexpr, SCALED: tl.constexpr, T: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    slot, first, end = tl.load(tile + SLOT).to(tl.int64), tl.load(tile + 2), tl.load(tile + 3)
    if first < end and (SLOT == 0 or slot > 0):
        token, column = first + tl.arange(0, T), start + tl.arange(0, C)
        real, inside = token < end, column < d_in
        out = dx + token.to(tl.int64)[:, None] * dx_stride + column[None, :]
        ok = real[:, None] & inside[None, :]
        before = tl.load(out, mask=ok, other=0.0).to(tl.float32)
        total = tl.zeros([T, C], tl.float32)
        for rank_start in range(0, n_ranks, R):
            rank = rank_start + tl.arange(0, R)
            used = rank < n_ranks
            of_tokens = tl.load(u + token.to(tl.int64)[:, None] * n_ranks + rank[None, :], mask=real[:, None] & used[None, :], other=0.0)
            a = factors + slot * factor_stride + rank[:, None] * d_in + column[None, :]
            total = _dot(of_tokens, tl.load(a, mask=used[:, None] & inside[None, :], other=0.0), total)
        scale += tl.load(tile + 4).to(tl.int64) * scale_stride
        if SCALED == 1:
            total = total * tl.load(scale)
        elif SCALED == 2:
            total = total * tl.load(scale + column, mask=inside, other=0.0)[None, :]
        tl.store(out, (before + total).to(dx.dtype.element_ty), mask=ok)


@triton.jit
def _add_da(
    x, u, gradients, scale, scale_stride, span, starts, start, x_stride, gradient_stride, d_in, n_ranks,
    SCALED: tl.constexpr, S: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    slot, first_row, end_row = tl.load(span).to(tl.int64), tl.load(span + 2), tl.load(span + 3)
    if first_row < end_row:
        column = start + tl.arange(0, C)
        inside = column < d_in
        for rank_start in range(0, n_ranks, R):
            rank = rank_start + tl.arange(0, R)
            used = rank < n_ranks
            out = gradients + slot * gradient_stride + rank[:, None] * d_in + column[None, :]
            ok = used[:, None] & inside[None, :]
            total = tl.load(out, mask=ok, other=0.0).to(tl.float32)
            row_scale = scale + first_row.to(tl.int64) * scale_stride
            for row in range(first_row, end_row):
                of_row = tl.zeros([R, C], tl.float32)
                end = tl.load(starts + row + 1)
                for token_start in range(tl.load(starts + row), end, S):
                    token = token_start + tl.arange(0, S)
                    real = token < end
                    values = tl.load(
                        x + token.to(tl.int64)[:, None] * x_stride + column[None, :], mask=real[:, None] & inside[None, :], other=0.0
                    )
                    of_tokens = tl.load(
                        u + token.to(tl.int64)[None, :] * n_ranks + rank[:, None], mask=used[:, None] & real[None, :], other=0.0
                    )
                    of_row = _dot(of_tokens, values, of_row)
                if SCALED == 1:
                    of_row = of_row * tl.load(row_scale)
                elif SCALED == 2:
                    of_row = of_row * tl.load(row_scale + column, mask=inside, other=0.0)[None, :]
                row_scale += scale_stride
                total += of_row
            tl.store(out, total.to(gradients.dtype.element_ty), mask=ok)


@triton.jit
def _add_db(
    h, dy, gradients, span, starts, block, dy_stride, gradient_stride, n_ranks,
    UNIT: tl.constexpr, S: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    slot, first_row, end_row = tl.load(span).to(tl.int64), tl.load(span + 2), tl.load(span + 3)
    if first_row < end_row:
        first, end = tl.load(starts + first_row), tl.load(starts + end_row)
        offset, first_rank, n, d_out, number, y_column = _block(block, UNIT)
        column = number * C + tl.arange(0, C)
        inside = column < d_out
        for rank_start in range(0, n, R):
            rank = rank_start + tl.arange(0, R)
            used = rank < n
            out = gradients + slot * gradient_stride + offset + rank[:, None] * d_out + column[None, :]
            ok = used[:, None] & inside[None, :]
            total = tl.load(out, mask=ok, other=0.0).to(tl.float32)
            for token_start in range(first, end, S):
                token = token_start + tl.arange(0, S)
                real = token < end
                dy_at = dy + token.to(tl.int64)[:, None] * dy_stride + y_column + column[None, :]
                values = tl.load(dy_at, mask=real[:, None] & inside[None, :], other=0.0)
                of_tokens = tl.load(
                    h + token.to(tl.int64)[None, :] * n_ranks + first_rank + rank[:, None], mask=used[:, None] & real[None, :], other=0.0
                )
                total = _dot(of_tokens, values, total)
            tl.store(out, total.to(gradients.dtype.element_ty), mask=ok)


@triton.jit
def _block(block, UNIT: tl.constexpr):
    """Return where B begins, the layer's first rank, its rank, its outputs, the block's number, and the layer's column of y."""
    offset, d_out, y_column = tl.load(block) * UNIT, tl.load(block + 3) * UNIT, tl.load(block + 5) * UNIT
    return offset, tl.load(block + 1), tl.load(block + 2), d_out, tl.load(block + 4), y_column
