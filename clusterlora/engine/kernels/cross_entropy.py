"""Cross-entropy of logits, which their gradient overwrites: logits of n tokens are the largest tensor of a pass.

legend   n tokens, V vocabulary

A program reads one row twice. First it computes the row's sum of exponentials and its maximum at once; each lane has its own running
maximum and sum, so that lanes wait for each other only at the row's end. Then it overwrites the row.
Source: Milakov & Gimelshein 2018, online softmax (arXiv 1805.02867).
"""

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

_LOWEST = tl.constexpr(-3e38)
"""Below every logit, and finite: a difference of infinities is not a number."""

_BLOCK, _N_WARPS = 8192, 16
"""16 logits per thread at a time: a few hundred rows are few programs, so each needs many loads in flight."""


@triton.jit
def _cross_entropy_kernel(logits_ptr, target_ptr, weight_ptr, nll_ptr, stride, n_vocabulary, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    logits = logits_ptr + row * stride
    lane = tl.arange(0, BLOCK)
    target = tl.load(target_ptr + row)
    weight = tl.load(weight_ptr + row).to(tl.float32)
    target_logit = tl.load(logits + target).to(tl.float32)
    largest = tl.full([BLOCK], _LOWEST, tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, n_vocabulary, BLOCK):
        x = tl.load(logits + start + lane, mask=start + lane < n_vocabulary, other=float("-inf")).to(tl.float32)
        # One of the two exponents of an update is 0.
        decay = tl.exp(-tl.abs(x - largest))
        total = tl.where(x > largest, total * decay + 1.0, total + decay)
        largest = tl.maximum(largest, x)
    row_largest = tl.max(largest, axis=0)
    # Not added to the maximum, beside which its digits may be lost.
    log_total = tl.log(tl.sum(total * tl.exp(largest - row_largest), axis=0))
    tl.store(nll_ptr + row, row_largest - target_logit + log_total)
    for start in range(0, n_vocabulary, BLOCK):
        column = start + lane
        mask = column < n_vocabulary
        x = tl.load(logits + column, mask=mask, other=float("-inf")).to(tl.float32)
        gradient = weight * (tl.exp(x - row_largest - log_total) - tl.where(column == target, 1.0, 0.0))
        tl.store(logits + column, gradient.to(logits_ptr.dtype.element_ty), mask=mask)


def cross_entropy_(logits: Float[Tensor, "n V"], targets: Int[Tensor, " n"], weight: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Return each token's negative log-likelihood in float32; the gradient of their weighted sum overwrites the logits.

    Args:
        targets: the token of each row, less than V.
        weight: of each row, in float32 or float64.
    """
    assert logits.stride(1) == targets.stride(0) == weight.stride(0) == 1, f"{logits.stride()}, {targets.stride()}, {weight.stride()}"
    n, n_vocabulary = logits.shape
    nll = torch.empty(n, dtype=torch.float32, device=logits.device)
    with torch.cuda.device_of(logits):
        _cross_entropy_kernel[(n,)](
            logits,
            targets,
            weight,
            nll,
            logits.stride(0),
            n_vocabulary,
            BLOCK=min(_BLOCK, triton.next_power_of_2(n_vocabulary)),
            num_warps=_N_WARPS,
        )
    return nll
