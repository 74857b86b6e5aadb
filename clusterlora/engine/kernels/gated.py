"""The gated activation of a block's multilayer perceptron, act(gate) * up, forward and backward; see `engine.families.block`.

legend   N tokens, f width of the gate

A program computes some columns of one token.
Source: Shazeer 2020, gates (arXiv 2002.05202); Hendrycks & Gimpel 2016, GELU and its approximation by tanh (arXiv 1606.08415).
"""

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

_KIND_BY_ACTIVATION = {"silu": "silu", "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}
"""What kernels are compiled for, by the names of `families.block.ACTIVATIONS`."""

_SQRT_HALF = tl.constexpr(0.7071067811865476)
_PDF_AT_ZERO = tl.constexpr(0.3989422804014327)
"""Of the standard normal distribution: 1 / sqrt(2 pi)."""
_TANH_SCALE = tl.constexpr(0.7978845608028654)
"""sqrt(2 / pi)"""
_TANH_CUBIC = tl.constexpr(0.044715)


@triton.jit
def _sigmoid(x):
    """Return 1 / (1 + exp(-x)), without an infinite exponential."""
    decay = tl.exp(-tl.abs(x))
    return tl.where(x >= 0, 1.0, decay) / (1 + decay)


@triton.jit
def _activation(x, KIND: tl.constexpr):
    """Return act(x) and its derivative, which a forward pass does not compute: the compiler removes it."""
    if KIND == "silu":
        share = _sigmoid(x)
        slope = share * (1 + x * (1 - share))
    elif KIND == "gelu":
        share = 0.5 * (1 + tl.erf(x * _SQRT_HALF))
        slope = share + x * tl.exp(-0.5 * x * x) * _PDF_AT_ZERO
    else:
        # (1 + tanh(z)) / 2 = sigmoid(2 z), without the cancellation of the left side.
        square = x * x
        share = _sigmoid(x * (2 + square * (2 * _TANH_CUBIC)) * _TANH_SCALE)
        slope = share + x * share * (1 - share) * (2 + square * (6 * _TANH_CUBIC)) * _TANH_SCALE
    return x * share, slope


@triton.jit
def _gated_kernel(gate_ptr, up_ptr, product_ptr, width, gate_stride, up_stride, KIND: tl.constexpr, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = column < width
    gate = tl.load(gate_ptr + token * gate_stride + column, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + token * up_stride + column, mask=mask, other=0.0).to(tl.float32)
    activated, _ = _activation(gate, KIND)
    tl.store(product_ptr + token * width + column, (activated * up).to(product_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _gated_backward_kernel(
    dproduct_ptr, gate_ptr, up_ptr, out_ptr, width, dproduct_stride, gate_stride, up_stride, KIND: tl.constexpr, BLOCK: tl.constexpr
):
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = column < width
    dproduct = tl.load(dproduct_ptr + token * dproduct_stride + column, mask=mask, other=0.0).to(tl.float32)
    gate = tl.load(gate_ptr + token * gate_stride + column, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + token * up_stride + column, mask=mask, other=0.0).to(tl.float32)
    activated, slope = _activation(gate, KIND)
    out = out_ptr + token * 2 * width + column
    tl.store(out, (dproduct * up * slope).to(out_ptr.dtype.element_ty), mask=mask)
    tl.store(out + width, (dproduct * activated).to(out_ptr.dtype.element_ty), mask=mask)


def gated(gate: Float[Tensor, "N f"], up: Float[Tensor, "N f"], activation: str) -> Float[Tensor, "N f"]:
    """Return act(gate) * up, contiguous.

    Args:
        gate: a view with any stride of rows, as `up`.
        activation: a name in `families.block.ACTIVATIONS`.
    """
    assert gate.stride(1) == up.stride(1) == 1, f"strides {gate.stride()}, {up.stride()}"
    product = gate.new_empty(gate.shape)
    n, width = gate.shape
    block, n_warps = _tile(width)
    with torch.cuda.device_of(gate):
        _gated_kernel[(n, triton.cdiv(width, block))](
            gate,
            up,
            product,
            width,
            gate.stride(0),
            up.stride(0),
            KIND=_KIND_BY_ACTIVATION[activation],
            BLOCK=block,
            num_warps=n_warps,
        )
    return product


def gated_backward(
    dproduct: Float[Tensor, "N f"], gate: Float[Tensor, "N f"], up: Float[Tensor, "N f"], activation: str
) -> Float[Tensor, "N D"]:
    """Return the gradients of gate and up side by side: D is 2 f.

    Args:
        dproduct: gradient of `gated`'s result, with any stride of rows, as `gate` and `up`.
        activation: a name in `families.block.ACTIVATIONS`.
    """
    assert dproduct.stride(1) == gate.stride(1) == up.stride(1) == 1, f"strides {dproduct.stride()}, {gate.stride()}, {up.stride()}"
    n, width = gate.shape
    out = gate.new_empty(n, 2 * width)
    block, n_warps = _tile(width)
    with torch.cuda.device_of(gate):
        _gated_backward_kernel[(n, triton.cdiv(width, block))](
            dproduct,
            gate,
            up,
            out,
            width,
            dproduct.stride(0),
            gate.stride(0),
            up.stride(0),
            KIND=_KIND_BY_ACTIVATION[activation],
            BLOCK=block,
            num_warps=n_warps,
        )
    return out


def _tile(width: int) -> tuple[int, int]:
    """Return the columns and the warps of a program: 8 columns per thread, one load of bfloat16."""
    block = min(1024, triton.next_power_of_2(width))
    return block, max(1, block // 256)
