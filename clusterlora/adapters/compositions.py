"""The weights of a composition: several adapters, each with a weight, as one."""

from collections.abc import Callable, Sequence

import torch

from clusterlora.engine.stacked import Weights
from clusterlora.errors import BadData
from clusterlora.values import WeightedAdapter


def combined_weights(adapters: Sequence[WeightedAdapter], read: Callable[[str], Weights]) -> Weights:
    """Return factors whose product is the weighted sum of the adapters' updates, and their prefixes concatenated.

    Raises:
        BadData: one of several adapters, or a weighted one, is of a kind that is not a sum of updates.
    """
    weighted = [(adapter.weight, read(adapter.name)) for adapter in adapters if adapter.weight != 0]
    if alone := [weights for _, weights in weighted if weights.peft_folder is not None]:
        if len(weighted) > 1 or weighted[0][0] != 1.0:
            names = " + ".join(f"{adapter.weight:g} {adapter.name}" for adapter in adapters)
            raise BadData(f"{names}: only adapters of the kinds lora and rslora can be weighted and added; use one of the others alone")
        return alone[0]
    weighted_factors = [(weight, weights.factors) for weight, weights in weighted]
    names = sorted({name for _, factors in weighted_factors for name in factors})
    prefixes = [weights.prefix for _, weights in weighted if weights.prefix is not None]
    return Weights(
        {
            name: (
                torch.cat([factors[name][0] for _, factors in weighted_factors if name in factors], dim=0),
                torch.cat([weight * factors[name][1] for weight, factors in weighted_factors if name in factors], dim=1),
            )
            for name in names
        },
        torch.cat(prefixes) if prefixes else None,
    )
