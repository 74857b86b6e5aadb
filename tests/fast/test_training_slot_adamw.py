"""Slots stepped together equal slots stepped alone by torch's AdamW, and other slots are unchanged."""

import pytest
import torch

from clusterlora.engine.slot_adamw import SlotAdamW, SlotStep

pytestmark = pytest.mark.numeric


def test_every_slot_steps_as_torch_steps_it_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    parameters = torch.randn(4, 30, generator=generator, dtype=torch.float64)
    gradients = torch.zeros_like(parameters)
    ours = SlotAdamW(parameters, gradients)
    alone = [torch.nn.Parameter(row.clone()) for row in parameters]
    theirs = [torch.optim.AdamW([parameter]) for parameter in alone]
    steps = [SlotStep(1e-2, 0.0, 0.1), SlotStep(1e-2, 0.0, 0.1), SlotStep(3e-3, 0.1, 5.0), SlotStep(1e-2, 0.1, 100.0)]
    for number in range(7):
        gradients.copy_(torch.randn(gradients.shape, generator=generator, dtype=torch.float64))
        asleep = {number % 4}
        for slot, (parameter, optimiser) in enumerate(zip(alone, theirs, strict=True)):
            if slot not in asleep:
                parameter.grad = gradients[slot].clone()
                torch.nn.utils.clip_grad_norm_([parameter], steps[slot].max_grad_norm)
                optimiser.param_groups[0].update(lr=steps[slot].learning_rate, weight_decay=steps[slot].weight_decay)
                optimiser.step()
        ours.step({slot: step for slot, step in enumerate(steps) if slot not in asleep})
        torch.testing.assert_close(parameters, torch.stack([p.detach() for p in alone]), rtol=1e-12, atol=0)


def test_a_reused_slot_starts_with_zero_moments() -> None:
    parameters, gradients = torch.ones(2, 5), torch.ones(2, 5)
    ours = SlotAdamW(parameters, gradients)
    ours.step({0: SlotStep(0.1, 0.0, 1.0), 1: SlotStep(0.1, 0.0, 1.0)})
    first = parameters[1].clone()
    ours.reset(1)
    parameters[1], gradients[1] = 1.0, 1.0
    ours.step({1: SlotStep(0.1, 0.0, 1.0)})
    torch.testing.assert_close(parameters[1], first)


def test_a_gradient_that_is_not_finite_stays_in_its_slot() -> None:
    parameters, gradients = torch.ones(2, 5), torch.ones(2, 5)
    gradients[0] = torch.nan
    SlotAdamW(parameters, gradients).step({1: SlotStep(0.1, 0.0, 1.0)})
    assert torch.equal(parameters[0], torch.ones(5))
    assert bool(torch.isfinite(parameters[1]).all())
    assert not torch.equal(parameters[1], torch.ones(5))
