"""Which layers of a base model adapters are on: by default its linear layers, whatever their family calls them, and what they leave out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from clusterlora.errors import BadSettings
from clusterlora.recipe import ALL_LINEAR, Recipe

if TYPE_CHECKING:
    from torch import nn

_EXPERTS = (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"))
"""Names by which PEFT reaches the weights of experts that are parameters of one module: gate and up, which are fused, and down."""
_NAMES = frozenset({name for names in _EXPERTS for name in names} | {"gate_up_proj", "experts.gate_up_proj", "experts.down_proj"})
"""Names by which anybody may mean the weights of experts."""
_NEGLIGIBLE = 0.01
"""Share of the blocks' weights that may have no adapter without a word: routers, convolutions, low-rank projections of a few columns."""


@dataclass(frozen=True, slots=True)
class BlockWeights:
    """The weight matrices of a model without its embeddings and output layer, which are `outside`.

    `n_weights` counts those of each layer's last name. `linear` are the names of linear layers, in the model's order. `experts` are the
    names that mean the weights of experts to PEFT, and no linear layer; empty for a model without, or with experts it does not reach.
    """

    n_weights: dict[str, int]
    linear: tuple[str, ...]
    outside: frozenset[str] = frozenset()
    experts: tuple[str, ...] = ()

    @property
    def all_linear(self) -> tuple[str, ...]:
        """The targets that `all-linear` stands for."""
        return tuple(name for name in self.linear if name not in self.experts)

    @property
    def has_unreached_experts(self) -> bool:
        """Whether there are weights of experts that PEFT does not adapt."""
        return not self.experts and "experts.gate_up_proj" in self.n_weights

    def reached(self, targets: Sequence[str], name: str) -> bool:
        """Return whether these targets put an adapter on the weights of this name."""
        _, _, parameter = name.rpartition(".")
        if self.experts and parameter != name and parameter in ("gate_up_proj", "down_proj"):
            return set(self.experts[:2]) <= set(targets) if parameter == "gate_up_proj" else self.experts[2] in targets
        return name in targets and name not in self.experts


def block_weights(model: "nn.Module") -> BlockWeights:
    """Return the weight matrices of a transformers model, which may be on the meta device."""
    from torch import nn

    from clusterlora.models.linear_layers import linear_layer

    outside = {id(model.get_input_embeddings()), id(model.get_output_embeddings())}  # pyrefly: ignore[not-callable]
    n_weights: dict[str, int] = {}
    linear: dict[str, None] = {}
    names_outside: set[str] = set()
    for path, module in model.named_modules():
        name = path.rpartition(".")[2]
        if id(module) in outside or isinstance(module, nn.Embedding):
            names_outside.add(name)
            continue
        is_linear = linear_layer(module) is not None
        if is_linear:
            linear[name] = None
        for key, parameter in module.named_parameters(recurse=False):
            if parameter.ndim > 1:
                whole = name if is_linear else f"{name}.{key}"
                n_weights[whole] = n_weights.get(whole, 0) + parameter.numel()
    return BlockWeights(n_weights, tuple(linear), frozenset(names_outside), _names_of_experts(model, n_weights))


def _names_of_experts(model: "nn.Module", n_weights: Mapping[str, int]) -> tuple[str, ...]:
    """Return the names that PEFT turns into parameters of experts on this model."""
    if not any(name.endswith(".gate_up_proj") for name in n_weights):
        return ()
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    for names in _EXPERTS:
        config = LoraConfig(target_modules=list(names))
        convert_peft_config_for_transformers(config, model, None)
        if config.target_parameters:
            return names
    return ()


def resolved(recipe: Recipe, weights: BlockWeights) -> Recipe:
    """Return the recipe with target modules that the model has.

    `all-linear`, and the default where the model's layers have other names, become the linear layers of its blocks.

    Raises:
        BadSettings: the model has none of the targets, or PEFT cannot adapt the experts that they name.
    """
    targets = recipe.target_modules
    is_default = targets == Recipe().target_modules and not set(targets) <= set(weights.all_linear)
    if targets == (ALL_LINEAR,) or is_default:
        return replace(recipe, target_modules=weights.all_linear)
    if weights.has_unreached_experts and (named := [name for name in targets if name in _NAMES and name not in weights.linear]):
        raise BadSettings(
            f"recipe.target_modules = {', '.join(targets)}: {' and '.join(named)} would be weights of experts, which PEFT does not reach "
            f"in this family; leave them out, or use {ALL_LINEAR}: adapters are on {', '.join(weights.all_linear)}"
        )
    if recipe.kind != "prefix" and targets and not any(_has(weights, name) for name in targets):
        raise BadSettings(
            f"recipe.target_modules = {', '.join(targets)}: the base model has no such layer; it has {', '.join(weights.all_linear)}; "
            f"name some of them, or {ALL_LINEAR}"
        )
    if 0 < len(set(targets) & set(weights.experts[:2])) < 2:
        raise BadSettings(
            f"recipe.target_modules = {', '.join(targets)}: the experts of this base hold {' and '.join(weights.experts[:2])} as one; "
            "name both or neither"
        )
    if names_experts(targets, weights) and recipe.dropout:
        raise BadSettings(
            f"recipe.target_modules = {', '.join(targets)} names experts, and recipe.dropout = {recipe.dropout}: "
            "PEFT adapts experts without dropout alone; set recipe.dropout=0, or leave them out"
        )
    return recipe


def reach(recipe: Recipe, weights: BlockWeights) -> str:
    """Say which targets the model lacks, and which of its weights get no adapter although the targets may suggest it; else nothing."""
    targets = recipe.target_modules
    if recipe.kind == "prefix" or not targets:
        return ""
    lacking = [name for name in targets if not _has(weights, name)]
    left = {name: n for name, n in weights.n_weights.items() if not weights.reached(targets, name)}
    share_left = sum(left.values()) / sum(weights.n_weights.values())
    parts = [f"the base model has no {' and no '.join(lacking)}"] if lacking else []
    if (lacking or set(targets) >= set(weights.all_linear)) and share_left > _NEGLIGIBLE:
        largest = ", ".join(sorted(left, key=lambda name: -left[name])[:4])
        parts.append(f"adapters reach {1 - share_left:.0%} of the weights in its blocks, and not {largest}")
    return f"recipe.target_modules = {', '.join(targets)}: {'; '.join(parts)}" if parts else ""


def _has(weights: BlockWeights, target: str) -> bool:
    return target in weights.linear or target in weights.experts or target in weights.outside


def names_experts(targets: Sequence[str], weights: BlockWeights) -> bool:
    """Return whether any of these targets means the weights of experts, which PEFT alone can adapt."""
    return bool(set(weights.experts) & set(targets))
