"""RMS normalisation, forward and backward, alone or with the residual sum before it; see `engine.norms.RMSNorm`.

legend   N tokens, H heads, d width (of a head, where there are heads)

One program normalises a few rows, each held in registers: x is read once.
Source: Zhang & Sennrich 2019 (arXiv 1910.07467).
"""

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor


@triton.jit
def _load(x_ptr, row, column, mask, stride_token, stride_head, n_heads):
    """Return rows of [N, H, d] in float32; `row` counts heads of tokens."""
    start = (row // n_heads).to(tl.int64) * stride_token + (row % n_heads).to(tl.int64) * stride_head
    return tl.load(x_ptr + start[:, None] + column[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["n_rows"])
def _rms_norm_kernel(
    x_ptr,
    residual_ptr,
    weight_ptr,
    total_ptr,
    y_ptr,
    inverse_ptr,
    n_rows,
    n_heads,
    x_stride_token,
    x_stride_head,
    residual_stride,
    eps,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    WIDE_WEIGHT: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    mask = (row < n_rows)[:, None] & (column < WIDTH)[None, :]
    dense = row.to(tl.int64)[:, None] * WIDTH + column[None, :]
    x = _load(x_ptr, row, column, mask, x_stride_token, x_stride_head, n_heads)
    dtype = y_ptr.dtype.element_ty
    if HAS_RESIDUAL:
        total = (x + _load(residual_ptr, row, column, mask, residual_stride, 0, 1)).to(dtype)
        tl.store(total_ptr + dense, total, mask=mask)
        x = total.to(tl.float32)
    inverse = tl.rsqrt(tl.sum(x * x, axis=1) / WIDTH + eps)
    tl.store(inverse_ptr + row, inverse, mask=row < n_rows)
    weight = tl.load(weight_ptr + column, mask=column < WIDTH, other=0.0).to(tl.float32)[None, :]
    unit = x * inverse[:, None]
    if not WIDE_WEIGHT:
        unit = unit.to(dtype).to(tl.float32)
    tl.store(y_ptr + dense, (unit * weight).to(dtype), mask=mask)


@triton.jit(do_not_specialize=["n_rows"])
def _rms_norm_backward_kernel(
    dy_ptr,
    x_ptr,
    weight_ptr,
    inverse_ptr,
    add_ptr,
    dx_ptr,
    n_rows,
    n_heads,
    dy_stride_token,
    dy_stride_head,
    x_stride_token,
    x_stride_head,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_ADD: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    mask = (row < n_rows)[:, None] & (column < WIDTH)[None, :]
    dense = row.to(tl.int64)[:, None] * WIDTH + column[None, :]
    inverse = tl.load(inverse_ptr + row, mask=row < n_rows, other=0.0)[:, None]
    weight = tl.load(weight_ptr + column, mask=column < WIDTH, other=0.0).to(tl.float32)[None, :]
    g = _load(dy_ptr, row, column, mask, dy_stride_token, dy_stride_head, n_heads) * weight
    unit = _load(x_ptr, row, column, mask, x_stride_token, x_stride_head, n_heads) * inverse
    along = tl.sum(g * unit, axis=1) / WIDTH
    dx = (g - unit * along[:, None]) * inverse
    if HAS_ADD:
        dx += tl.load(add_ptr + dense, mask=mask, other=0.0).to(tl.float32)
    tl.store(dx_ptr + dense, dx.to(dx_ptr.dtype.element_ty), mask=mask)


def rms_norm(
    x: Float[Tensor, "*rows d"], weight: Float[Tensor, " d"], eps: float, *, wide_weight: bool
) -> tuple[Float[Tensor, "*rows d"], Float[Tensor, "*rows 1"]]:
    """Return the normalised rows in the dtype of x, contiguous, and 1 / rms of each row in float32.

    Args:
        x: [N, d] or [N, H, d], a view with any strides but for the last axis, whose stride is 1.
        wide_weight: see `RMSNorm.wide_weight`.
    """
    y = x.new_empty(x.shape)
    return y, _forward(x, None, weight, eps, x, y, wide_weight=wide_weight)


def add_rms_norm(
    x: Float[Tensor, "N d"], residual: Float[Tensor, "N d"], weight: Float[Tensor, " d"], eps: float, *, wide_weight: bool
) -> tuple[Float[Tensor, "N d"], Float[Tensor, "N d"], Float[Tensor, "N 1"]]:
    """Return x + residual, it normalised, and 1 / rms of each of its rows; the sum is written over a contiguous x.

    Args:
        wide_weight: see `RMSNorm.wide_weight`.
    """
    total = x if x.is_contiguous() else x.new_empty(x.shape)
    y = x.new_empty(x.shape)
    return total, y, _forward(x, residual, weight, eps, total, y, wide_weight=wide_weight)


def rms_norm_backward(
    dy: Float[Tensor, "*rows d"],
    x: Float[Tensor, "*rows d"],
    weight: Float[Tensor, " d"],
    inverse: Float[Tensor, "*rows 1"],
    add: Float[Tensor, "*rows d"] | None = None,
) -> Float[Tensor, "*rows d"]:
    """Return the gradient of x, contiguous; see `RMSNorm.backward`.

    Args:
        dy: gradient of the normalised rows, with any strides but for the last axis, as x.
        inverse: 1 / rms of each row of x, from the forward pass.
        add: another gradient of x, contiguous, that is added.
    """
    dx = dy.new_empty(dy.shape)
    n_heads, *x_strides = _row_strides(x)
    _, *dy_strides = _row_strides(dy)
    n_rows, rows, block, n_warps = _tile(x)
    with torch.cuda.device_of(x):
        _rms_norm_backward_kernel[(triton.cdiv(n_rows, rows),)](
            dy,
            x,
            weight,
            inverse,
            dy if add is None else add,
            dx,
            n_rows,
            n_heads,
            *dy_strides,
            *x_strides,
            WIDTH=x.shape[-1],
            ROWS=rows,
            BLOCK=block,
            HAS_ADD=add is not None,
            num_warps=n_warps,
        )
    return dx


def _forward(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float, total: Tensor, y: Tensor, *, wide_weight: bool) -> Tensor:
    """Write the normalised rows to y, and with a residual their sum to `total`; return 1 / rms of each row."""
    inverse = torch.empty((*x.shape[:-1], 1), dtype=torch.float32, device=x.device)
    n_rows, rows, block, n_warps = _tile(x)
    with torch.cuda.device_of(x):
        _rms_norm_kernel[(triton.cdiv(n_rows, rows),)](
            x,
            x if residual is None else residual,
            weight,
            total,
            y,
            inverse,
            n_rows,
            *_row_strides(x),
            0 if residual is None else residual.stride(0),
            eps,
            WIDTH=x.shape[-1],
            ROWS=rows,
            BLOCK=block,
            HAS_RESIDUAL=residual is not None,
            WIDE_WEIGHT=wide_weight,
            num_warps=n_warps,
        )
    return inverse


def _row_strides(x: Tensor) -> tuple[int, int, int]:
    """Return the heads of a token, the stride of tokens and that of heads."""
    assert x.stride(-1) == 1, f"strides {x.stride()}"
    return (1, x.stride(0), 0) if x.ndim == 2 else (x.shape[1], x.stride(0), x.stride(1))


def _tile(x: Tensor) -> tuple[int, int, int, int]:
    """Return the number of rows, rows per program, columns per program and warps: 16 elements per thread, two loads of bfloat16."""
    width = x.shape[-1]
    block = triton.next_power_of_2(width)
    rows = max(1, 1024 // block)
    return x.numel() // width, rows, block, min(max(rows * block // 512, 1), 16)
