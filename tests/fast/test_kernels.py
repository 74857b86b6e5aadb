"""Triton kernels equal the PyTorch code that they replace, in float64; on a GPU compiled, elsewhere interpreted."""

import os
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="Triton exists on Linux only")

from clusterlora.engine.families.block import ACTIVATIONS
from clusterlora.engine.kernels.cross_entropy import cross_entropy_
from clusterlora.engine.kernels.gated import gated, gated_backward
from clusterlora.engine.kernels.rms_norm import add_rms_norm, rms_norm, rms_norm_backward
from clusterlora.engine.kernels.rope import rope_, rope_backward_packed
from clusterlora.engine.kernels.slot_adamw import row_norms, slot_adamw
from clusterlora.engine.norms import RMSNorm
from clusterlora.engine.rope import apply_rope

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")

pytestmark = [
    pytest.mark.numeric,
    pytest.mark.skipif(not INTERPRETED and not torch.cuda.is_available(), reason="an NVIDIA driver, but PyTorch does not use the GPU"),
]

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
EPS = 1e-6


def random(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype).to(DEVICE)


def assert_equal(actual: Tensor, expected: Tensor, *, n_roundings: int = 1, scale: Tensor | None = None) -> None:
    """Compare with float64: each rounding may move a value by a unit in the last place of the largest one, or of `scale`'s.

    The arithmetic before, in float32, may move it by some units of float32.
    """
    unit = torch.finfo(actual.dtype).eps * n_roundings + 32 * torch.finfo(torch.float32).eps
    largest = float((expected if scale is None else scale).abs().max())
    torch.testing.assert_close(actual.double(), expected.double(), rtol=unit, atol=unit * largest)


def rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return float32 as a GPU rounds it, to nearest; Triton's interpreter cuts off the digits that bfloat16 lacks."""
    if INTERPRETED and dtype == torch.bfloat16:
        x = (x.view(torch.int32) & ~0xFFFF).view(torch.float32)
    return x.to(dtype)


def columns(x: Tensor) -> Tensor:
    """Return a tensor with the same values among other columns, as parts of a fused product are."""
    return torch.cat([torch.full_like(x, torch.nan), x, torch.full_like(x, torch.nan)], dim=1)[:, x.shape[1] : 2 * x.shape[1]]


@DTYPES
@pytest.mark.parametrize("wide_weight", [False, True])
@pytest.mark.parametrize("shape", [(3, 72), (1, 1), (5, 1024), (2, 1500), (7, 3, 20), (1, 5, 64)], ids=str)
@pytest.mark.parametrize("view", [Tensor.contiguous, columns], ids=["contiguous", "columns"])
def test_rms_norm_equals_the_module(shape: Sequence[int], dtype: torch.dtype, wide_weight: bool, view: Callable[[Tensor], Tensor]) -> None:
    x, weight = view(random(*shape, seed=0, dtype=dtype)), random(shape[-1], seed=1, dtype=dtype)
    dy, add = view(random(*shape, seed=2, dtype=dtype)), random(*shape, seed=3, dtype=dtype)
    norm = RMSNorm(weight.double(), EPS, wide_weight)
    expected, saved = norm.forward(x.double())
    y, inverse = rms_norm(x, weight, EPS, wide_weight=wide_weight)
    assert (y.dtype, inverse.dtype) == (dtype, torch.float32)
    assert y.is_contiguous()
    assert_equal(y, expected, n_roundings=2)
    assert_equal(inverse, saved[1])
    expected_dx = norm.backward(dy.double(), saved)
    scale = dy.double() * weight.double() * saved[1]
    assert_equal(rms_norm_backward(dy, x, weight, inverse), expected_dx, scale=scale)
    dx = rms_norm_backward(dy, x, weight, inverse, add)
    assert dx.dtype == dtype
    assert_equal(dx, expected_dx + add.double(), scale=scale)


@pytest.mark.parametrize("wide_weight", [False, True])
def test_rms_norm_rounds_where_the_module_rounds(wide_weight: bool) -> None:
    x, weight = random(6, 300, seed=0, dtype=torch.bfloat16), random(300, seed=1, dtype=torch.bfloat16)
    y, inverse = rms_norm(x, weight, EPS, wide_weight=wide_weight)
    unit = x.float() * inverse
    before, after = rounded(unit * weight, x.dtype), rounded(rounded(unit, x.dtype).float() * weight, x.dtype)
    assert torch.equal(y, before if wide_weight else after)
    assert not torch.equal(before, after)


@DTYPES
@pytest.mark.parametrize("view", [Tensor.contiguous, columns], ids=["contiguous", "columns"])
def test_add_rms_norm_equals_sum_and_module(dtype: torch.dtype, view: Callable[[Tensor], Tensor]) -> None:
    x, residual = (view(random(3, 72, seed=seed, dtype=dtype)) for seed in (0, 1))
    weight = random(72, seed=2, dtype=dtype)
    expected = rounded(x.float() + residual.float(), dtype)
    total, y, inverse = add_rms_norm(x, residual, weight, EPS, wide_weight=False)
    assert (total is x) == x.is_contiguous()
    assert torch.equal(total, expected)
    expected_y, (_, expected_inverse) = RMSNorm(weight.double(), EPS).forward(expected.double())
    assert_equal(y, expected_y, n_roundings=2)
    assert_equal(inverse, expected_inverse)


def angles(n: int, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    half = 3 * random(n, width // 2, seed=9)
    return torch.cat([half.cos(), half.cos()], dim=1).to(dtype), torch.cat([-half.sin(), half.sin()], dim=1).to(dtype)


@DTYPES
@pytest.mark.parametrize(("n_heads", "width", "rotated"), [(3, 16, 16), (1, 20, 12), (70, 80, 80), (2, 64, 2)])
def test_rope_equals_apply_rope(n_heads: int, width: int, rotated: int, dtype: torch.dtype) -> None:
    fused = random(3, (n_heads + 2) * width, seed=0, dtype=dtype)
    before = fused.clone()
    x = fused[:, width:-width].unflatten(1, (n_heads, width))
    cos, sin = angles(3, rotated, dtype)
    expected = apply_rope(x.double(), cos.double(), sin.double())
    rope_(x, cos, sin)
    assert_equal(x, expected)
    assert torch.equal(fused[:, :width], before[:, :width])
    assert torch.equal(fused[:, -width:], before[:, -width:])


@DTYPES
@pytest.mark.parametrize(
    ("n_query", "n_kv", "width", "rotated"), [(4, 2, 16, 16), (3, 1, 20, 12), (70, 5, 80, 80), (1, 1, 6, 2), (4, 4, 24, None)]
)
def test_rope_goes_back_into_one_gradient(n_query: int, n_kv: int, width: int, rotated: int | None, dtype: torch.dtype) -> None:
    # As attention returns them: heads before tokens.
    dq, dk, dv = (random(n, 3, width, seed=n, dtype=dtype).transpose(0, 1) for n in (n_query, n_kv, n_kv))
    cos, sin = (None, None) if rotated is None else angles(3, rotated, dtype)
    packed = rope_backward_packed(dq, dk, dv, cos, sin)
    assert packed.dtype == dtype
    assert packed.is_contiguous()
    parts = [dq.double(), dk.double()]
    if cos is not None and sin is not None:
        parts = [apply_rope(part, cos.double(), -sin.double()) for part in parts]
    assert_equal(packed, torch.cat([*parts, dv.double()], dim=1).flatten(1))


@DTYPES
@pytest.mark.parametrize("activation", list(ACTIVATIONS))
@pytest.mark.parametrize("shape", [(3, 40), (1, 1), (2, 1500)], ids=str)
def test_the_gated_activation_equals_that_of_the_blocks(activation: str, shape: Sequence[int], dtype: torch.dtype) -> None:
    gate, up = (3 * random(shape[0], 2 * shape[1], seed=0, dtype=dtype)).chunk(2, dim=1)
    gate[0, 0] = -60.0
    dproduct = columns(random(*shape, seed=1, dtype=dtype))
    function = ACTIVATIONS[activation]
    wide_gate, wide_up, wide_dproduct = gate.double(), up.double(), dproduct.double()
    product = gated(gate, up, activation)
    assert product.dtype == dtype
    assert product.is_contiguous()
    assert_equal(product, function.forward(wide_gate) * wide_up)
    gradient = gated_backward(dproduct, gate, up, activation)
    assert gradient.dtype == dtype
    assert gradient.is_contiguous()
    dgate, dup = gradient.chunk(2, dim=1)
    assert_equal(dgate, function.backward(wide_dproduct * wide_up, wide_gate))
    assert_equal(dup, wide_dproduct * function.forward(wide_gate))


@DTYPES
@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.float64], ids=["weight32", "weight64"])
@pytest.mark.parametrize("view", [Tensor.contiguous, columns], ids=["contiguous", "columns"])
@pytest.mark.parametrize("shape", [(3, 50), (1, 1), (4, 20_001)], ids=str)
def test_cross_entropy_and_its_gradient_equal_those_of_torch(
    shape: tuple[int, int], view: Callable[[Tensor], Tensor], weight_dtype: torch.dtype, dtype: torch.dtype
) -> None:
    n, n_vocabulary = shape
    logits = 5 * random(n, n_vocabulary, seed=0, dtype=dtype)
    logits[-1] *= 1000
    logits[0, n_vocabulary // 2] = -torch.inf
    logits = view(logits)
    targets = torch.tensor([n_vocabulary - 1, 0, 1, n_vocabulary - 2], device=DEVICE)[:n]
    weight = torch.tensor([0.5, 0.0, 3.0, 1.0], device=DEVICE, dtype=weight_dtype)[:n]
    if n_vocabulary == 1:
        logits.zero_()
    reference = logits.double().requires_grad_()
    expected = torch.nn.functional.cross_entropy(reference, targets, reduction="none")
    (expected * weight).sum().backward()
    nll = cross_entropy_(logits, targets, weight)
    assert nll.dtype == torch.float32
    assert_equal(nll, expected.detach(), scale=reference.detach()[-1])
    assert reference.grad is not None
    assert_equal(logits, reference.grad)


def test_slots_step_as_torch_steps_each_alone() -> None:
    n_slots, n = 5, 1030
    parameters = columns(random(n_slots, n, seed=0))
    gradients, first, second = torch.zeros_like(parameters), torch.zeros(n_slots, n, device=DEVICE), torch.zeros(n_slots, n, device=DEVICE)
    alone = [torch.nn.Parameter(row.double()) for row in parameters]
    theirs = [torch.optim.AdamW([row], lr=10.0**-slot, weight_decay=0.1 * slot) for slot, row in enumerate(alone)]
    n_steps = [0] * n_slots
    for number in range(4):
        gradients.copy_(random(n_slots, n, seed=number + 1))
        # Slot 2 is never listed, slot 3 in some steps.
        listed = [4, 0, 3, 1] if number % 2 else [4, 0, 1]
        gradients[2] = torch.nan
        table = []
        for slot in listed:
            clip = 1.0 / (slot + 1)
            n_steps[slot] += 1
            group, t = theirs[slot].param_groups[0], n_steps[slot]
            table.append([group["lr"], group["weight_decay"], clip, 1 - 0.9**t, (1 - 0.999**t) ** 0.5])
            alone[slot].grad = gradients[slot].double() * clip
            theirs[slot].step()
        slots = torch.tensor(listed, device=DEVICE)
        slot_adamw(parameters, gradients, first, second, slots, torch.tensor(table, device=DEVICE))
    for slot, row in enumerate(alone):
        assert_equal(parameters[slot], row.detach())
        state = theirs[slot].state.get(row, {"exp_avg": torch.zeros_like(row), "exp_avg_sq": torch.zeros_like(row)})
        assert_equal(first[slot], state["exp_avg"])
        assert_equal(second[slot], state["exp_avg_sq"])


@pytest.mark.parametrize("n", [1, 1030, 70_001])
def test_the_norms_of_rows_are_torchs_and_the_same_in_every_call(n: int) -> None:
    gradients = random(4, n, seed=0)
    gradients[1] = torch.nan
    norms = row_norms(gradients, torch.tensor([3, 0, 1], device=DEVICE))
    assert_equal(norms[:2], torch.linalg.vector_norm(gradients[[3, 0]].double(), dim=1))
    assert bool(norms[2].isnan())
    assert torch.equal(row_norms(gradients, torch.tensor([0], device=DEVICE))[0], norms[1])
