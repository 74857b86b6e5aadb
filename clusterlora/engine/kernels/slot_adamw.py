"""AdamW on rows of a matrix in one launch, and the norms of rows; see `engine.slot_adamw`.

legend   K slots, n parameters of a slot, s slots of a call

What a row's step needs is read on the device, from a table: the factor of a gradient depends on its norm, for which the CPU does not wait.
Source: Loshchilov & Hutter 2019, decoupled weight decay (arXiv 1711.05101).
"""

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

_BETA1, _BETA2, _EPS = tl.constexpr(0.9), tl.constexpr(0.999), tl.constexpr(1e-8)
_ONE_MINUS_BETA1, _ONE_MINUS_BETA2 = tl.constexpr(0.1), tl.constexpr(0.001)

_BLOCK, _N_WARPS = 1024, 4
"""Of a step: 8 parameters per thread, two loads of each of four matrices."""

_NORM_BLOCK, _NORM_WARPS = 4096, 8
_BLOCKS_PER_PARTIAL = 8
"""What one program sums depends on nothing but the row, so a norm is the same in every call."""


@triton.jit
def _slot_adamw_kernel(
    parameter_ptr,
    gradient_ptr,
    first_ptr,
    second_ptr,
    slots_ptr,
    table_ptr,
    parameter_stride,
    gradient_stride,
    first_stride,
    second_stride,
    n,
    BLOCK: tl.constexpr,
):
    number = tl.program_id(1)
    row = table_ptr + number * 5
    slot = tl.load(slots_ptr + number)
    learning_rate, weight_decay, clip = tl.load(row), tl.load(row + 1), tl.load(row + 2)
    first_correction, root_of_second_correction = tl.load(row + 3), tl.load(row + 4)
    column = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = column < n
    parameters = parameter_ptr + slot * parameter_stride + column
    firsts, seconds = first_ptr + slot * first_stride + column, second_ptr + slot * second_stride + column
    gradient = tl.load(gradient_ptr + slot * gradient_stride + column, mask=mask, other=0.0) * clip
    first = tl.load(firsts, mask=mask, other=0.0) * _BETA1 + gradient * _ONE_MINUS_BETA1
    second = tl.load(seconds, mask=mask, other=0.0) * _BETA2 + gradient * gradient * _ONE_MINUS_BETA2
    decayed = tl.load(parameters, mask=mask, other=0.0) * (1 - learning_rate * weight_decay)
    update = first / (tl.sqrt_rn(second) / root_of_second_correction + _EPS)
    tl.store(parameters, decayed - update * (learning_rate / first_correction), mask=mask)
    tl.store(firsts, first, mask=mask)
    tl.store(seconds, second, mask=mask)


@triton.jit
def _partial_squares_kernel(gradient_ptr, slots_ptr, partial_ptr, stride, n, BLOCK: tl.constexpr, N_BLOCKS: tl.constexpr):
    number = tl.program_id(1)
    row = gradient_ptr + tl.load(slots_ptr + number) * stride
    total = tl.zeros([BLOCK], tl.float32)
    for block in range(N_BLOCKS):
        column = (tl.program_id(0).to(tl.int64) * N_BLOCKS + block) * BLOCK + tl.arange(0, BLOCK)
        gradient = tl.load(row + column, mask=column < n, other=0.0)
        total += gradient * gradient
    tl.store(partial_ptr + number * tl.num_programs(0) + tl.program_id(0), tl.sum(total, axis=0))


@triton.jit
def _norms_kernel(partial_ptr, norm_ptr, n_partials, BLOCK: tl.constexpr):
    number = tl.program_id(0)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, n_partials, BLOCK):
        column = start + tl.arange(0, BLOCK)
        total += tl.load(partial_ptr + number * n_partials + column, mask=column < n_partials, other=0.0)
    tl.store(norm_ptr + number, tl.sqrt_rn(tl.sum(total, axis=0)))


def slot_adamw(
    parameters: Float[Tensor, "K n"],
    gradients: Float[Tensor, "K n"],
    first: Float[Tensor, "K n"],
    second: Float[Tensor, "K n"],
    slots: Int[Tensor, " s"],
    table: Float[Tensor, "s 5"],
) -> None:
    """Step each of these slots as `torch.optim.AdamW` does; the matrices are in float32.

    Args:
        first: the moments, as `second`; updated in place, as `parameters`.
        slots: rows of the matrices, each at most once.
        table: of each slot the learning rate, the weight decay, the factor of its gradient, and the corrections 1 - beta1^t and
            sqrt(1 - beta2^t) at its t-th step. In float32, contiguous.
    """
    matrices = (parameters, gradients, first, second)
    assert all(matrix.dtype == torch.float32 and matrix.stride(1) == 1 for matrix in matrices), [m.dtype for m in matrices]
    assert table.dtype == torch.float32, f"{table.dtype}"
    assert table.is_contiguous(), f"strides {table.stride()}"
    n = parameters.shape[1]
    with torch.cuda.device_of(parameters):
        _slot_adamw_kernel[(triton.cdiv(n, _BLOCK), len(slots))](
            parameters,
            gradients,
            first,
            second,
            slots,
            table,
            parameters.stride(0),
            gradients.stride(0),
            first.stride(0),
            second.stride(0),
            n,
            BLOCK=_BLOCK,
            num_warps=_N_WARPS,
        )


def row_norms(gradients: Float[Tensor, "K n"], slots: Int[Tensor, " s"]) -> Float[Tensor, " s"]:
    """Return the 2-norm of these rows of a float32 matrix; the same for a row in every call."""
    assert gradients.dtype == torch.float32, f"{gradients.dtype}"
    assert gradients.stride(1) == 1, f"strides {gradients.stride()}"
    n = gradients.shape[1]
    n_partials = triton.cdiv(n, _NORM_BLOCK * _BLOCKS_PER_PARTIAL)
    partial = gradients.new_empty(len(slots), n_partials)
    norms = gradients.new_empty(len(slots))
    with torch.cuda.device_of(gradients):
        _partial_squares_kernel[(n_partials, len(slots))](
            gradients,
            slots,
            partial,
            gradients.stride(0),
            n,
            BLOCK=_NORM_BLOCK,
            N_BLOCKS=_BLOCKS_PER_PARTIAL,
            num_warps=_NORM_WARPS,
        )
        _norms_kernel[(len(slots),)](partial, norms, n_partials, BLOCK=1024, num_warps=4)
    return norms
