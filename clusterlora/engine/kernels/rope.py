"""Rotary position embeddings, in place, and back into the gradient of a fused query-key-value product; see `engine.rope`.

legend   N tokens, h heads, H query heads, G key-value heads, e width of a head, w its rotated part (e, or less)

A program rotates some heads of one token, which share its angles.
Source: Su et al. 2021 (arXiv 2104.09864).
"""

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor


@triton.jit
def _load_angles(cos_ptr, sin_ptr, token, stride, pair, HALF: tl.constexpr):
    """Return cosine and signed sine of the first and of the second half of a token's rotated columns."""
    at, mask = token * stride + pair, pair < HALF
    first_cos = tl.load(cos_ptr + at, mask=mask, other=0.0).to(tl.float32)[None, :]
    second_cos = tl.load(cos_ptr + at + HALF, mask=mask, other=0.0).to(tl.float32)[None, :]
    first_sin = tl.load(sin_ptr + at, mask=mask, other=0.0).to(tl.float32)[None, :]
    second_sin = tl.load(sin_ptr + at + HALF, mask=mask, other=0.0).to(tl.float32)[None, :]
    return first_cos, second_cos, first_sin, second_sin


@triton.jit
def _rope_kernel(
    x_ptr, cos_ptr, sin_ptr, n_heads, stride_token, stride_head, stride_cos, HALF: tl.constexpr, HEADS: tl.constexpr, PAIRS: tl.constexpr
):
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    pair = tl.arange(0, PAIRS)
    mask = (head < n_heads)[:, None] & (pair < HALF)[None, :]
    first_cos, second_cos, first_sin, second_sin = _load_angles(cos_ptr, sin_ptr, token, stride_cos, pair, HALF)
    at = x_ptr + token * stride_token + head.to(tl.int64)[:, None] * stride_head + pair[None, :]
    first = tl.load(at, mask=mask, other=0.0).to(tl.float32)
    second = tl.load(at + HALF, mask=mask, other=0.0).to(tl.float32)
    dtype = x_ptr.dtype.element_ty
    tl.store(at, (first * first_cos + second * first_sin).to(dtype), mask=mask)
    tl.store(at + HALF, (second * second_cos + first * second_sin).to(dtype), mask=mask)


@triton.jit
def _load_heads(dq_ptr, dk_ptr, dv_ptr, strides, token, head, column, within, N_QUERY: tl.constexpr, N_KV: tl.constexpr):
    """Return columns of heads that are counted through queries, keys and values; every element is in one of the three."""
    of_query, of_key = head < N_QUERY, (head >= N_QUERY) & (head < N_QUERY + N_KV)
    of_value = (head >= N_QUERY + N_KV) & (head < N_QUERY + 2 * N_KV)
    column, within = column[None, :], within[None, :]
    at_query = dq_ptr + token * strides[0] + head.to(tl.int64)[:, None] * strides[1] + column
    at_key = dk_ptr + token * strides[2] + (head - N_QUERY).to(tl.int64)[:, None] * strides[3] + column
    at_value = dv_ptr + token * strides[4] + (head - N_QUERY - N_KV).to(tl.int64)[:, None] * strides[5] + column
    query = tl.load(at_query, mask=of_query[:, None] & within, other=0.0).to(tl.float32)
    key = tl.load(at_key, mask=of_key[:, None] & within, other=0.0).to(tl.float32)
    value = tl.load(at_value, mask=of_value[:, None] & within, other=0.0).to(tl.float32)
    return tl.where(of_query[:, None], query, tl.where(of_key[:, None], key, value))


@triton.jit
def _rope_backward_kernel(
    dq_ptr,
    dk_ptr,
    dv_ptr,
    cos_ptr,
    sin_ptr,
    out_ptr,
    dq_stride_token,
    dq_stride_head,
    dk_stride_token,
    dk_stride_head,
    dv_stride_token,
    dv_stride_head,
    stride_cos,
    N_QUERY: tl.constexpr,
    N_KV: tl.constexpr,
    WIDTH: tl.constexpr,
    HALF: tl.constexpr,
    HEADS: tl.constexpr,
    PAIRS: tl.constexpr,
    REST: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    exists = (head < N_QUERY + 2 * N_KV)[:, None]
    strides = (dq_stride_token, dq_stride_head, dk_stride_token, dk_stride_head, dv_stride_token, dv_stride_head)
    out = out_ptr + token * ((N_QUERY + 2 * N_KV) * WIDTH) + head[:, None] * WIDTH
    dtype = out_ptr.dtype.element_ty
    if HALF > 0:
        pair = tl.arange(0, PAIRS)
        within = pair < HALF
        first_cos, second_cos, first_sin, second_sin = _load_angles(cos_ptr, sin_ptr, token, stride_cos, pair, HALF)
        first = _load_heads(dq_ptr, dk_ptr, dv_ptr, strides, token, head, pair, within, N_QUERY, N_KV)
        second = _load_heads(dq_ptr, dk_ptr, dv_ptr, strides, token, head, pair + HALF, within, N_QUERY, N_KV)
        rotated = (head < N_QUERY + N_KV)[:, None]
        first_back = tl.where(rotated, first * first_cos - second * first_sin, first)
        second_back = tl.where(rotated, second * second_cos - first * second_sin, second)
        mask = exists & within[None, :]
        tl.store(out + pair[None, :], first_back.to(dtype), mask=mask)
        tl.store(out + HALF + pair[None, :], second_back.to(dtype), mask=mask)
    if REST > 0:
        column = 2 * HALF + tl.arange(0, REST)
        within = column < WIDTH
        rest = _load_heads(dq_ptr, dk_ptr, dv_ptr, strides, token, head, column, within, N_QUERY, N_KV)
        tl.store(out + column[None, :], rest.to(dtype), mask=exists & within[None, :])


def rope_(x: Float[Tensor, "N h e"], cos: Float[Tensor, "N w"], sin: Float[Tensor, "N w"]) -> None:
    """Rotate heads in place by the angles of their positions, given as cosine and signed sine; as `apply_rope` does.

    Args:
        x: a view with any strides but for the last axis, whose stride is 1.
    """
    assert x.stride(-1) == cos.stride(-1) == sin.stride(-1) == 1, f"strides {x.stride()}, {cos.stride()}, {sin.stride()}"
    assert cos.stride(0) == sin.stride(0), f"strides {cos.stride()}, {sin.stride()}"
    n, n_heads, _ = x.shape
    half = cos.shape[-1] // 2
    heads, n_warps = _tile(n_heads, half)
    with torch.cuda.device_of(x):
        _rope_kernel[(n, triton.cdiv(n_heads, heads))](
            x,
            cos,
            sin,
            n_heads,
            x.stride(0),
            x.stride(1),
            cos.stride(0),
            HALF=half,
            HEADS=heads,
            PAIRS=triton.next_power_of_2(half),
            num_warps=n_warps,
        )


def rope_backward_packed(
    dq: Float[Tensor, "N H e"],
    dk: Float[Tensor, "N G e"],
    dv: Float[Tensor, "N G e"],
    cos: Float[Tensor, "N w"] | None,
    sin: Float[Tensor, "N w"] | None,
) -> Float[Tensor, "N D"]:
    """Return the gradients before rotation, [dq, dk, dv] side by side: D is (H + 2 G) e.

    Args:
        dq: gradient of the rotated queries, `dk` of the rotated keys, `dv` of the values; any strides but for the last axis.
        cos: cosine and signed sine, as `rope_` takes them; without them nothing is rotated.
    """
    assert dq.stride(-1) == dk.stride(-1) == dv.stride(-1) == 1, f"strides {dq.stride()}, {dk.stride()}, {dv.stride()}"
    (n, n_query, width), n_kv = dq.shape, dk.shape[1]
    if cos is None or sin is None:
        cos = sin = dq[:, 0]
        half = 0
    else:
        assert cos.stride() == sin.stride(), f"strides {cos.stride()}, {sin.stride()}"
        half = cos.shape[-1] // 2
    out = dq.new_empty(n, (n_query + 2 * n_kv) * width)
    heads, n_warps = _tile(n_query + 2 * n_kv, max(half, width // 2))
    with torch.cuda.device_of(dq):
        _rope_backward_kernel[(n, triton.cdiv(n_query + 2 * n_kv, heads))](
            dq,
            dk,
            dv,
            cos,
            sin,
            out,
            dq.stride(0),
            dq.stride(1),
            dk.stride(0),
            dk.stride(1),
            dv.stride(0),
            dv.stride(1),
            cos.stride(0),
            N_QUERY=n_query,
            N_KV=n_kv,
            WIDTH=width,
            HALF=half,
            HEADS=heads,
            PAIRS=triton.next_power_of_2(half) if half else 1,
            REST=triton.next_power_of_2(width - 2 * half) if width > 2 * half else 0,
            num_warps=n_warps,
        )
    return out


def _tile(n_heads: int, half: int) -> tuple[int, int]:
    """Return the heads and the warps of a program: up to 2048 pairs, 8 per thread."""
    pairs = triton.next_power_of_2(half)
    heads = max(1, min(triton.next_power_of_2(n_heads), 2048 // pairs))
    return heads, min(max(heads * pairs // 256, 1), 8)
