"""What a kind of adapter is to the engine.

A kind with slots shares passes: the parameters of K adapters are rows of one matrix, and a backend runs rows of a batch with them forward
and backward. A kind without slots is trained and asked through PEFT, one adapter after another, behind the same interface.
"""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from clusterlora.recipe import Recipe

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from torch import Tensor

    from clusterlora.engine.backends import Backend
    from clusterlora.engine.base import BaseModel
    from clusterlora.engine.stacked import Weights


class Slots(Protocol):
    """K adapters in memory: slot k is row k of two [K, n] matrices, the parameters and their gradients."""

    parameters: "Tensor"
    gradients: "Tensor"
    n_features: int
    """Inputs over all layers that dropout masks; 0 for kinds without dropout."""

    def initial(self, *, rank: int, seed: int) -> "dict[str, Tensor]":
        """Return the tensors that an adapter of this rank and seed starts from, under PEFT's names."""
        ...

    def read(self, slot: int, matrix: "Tensor", *, rank: int) -> "dict[str, Tensor]":
        """Return a slot's row of a [K, n] matrix as tensors under PEFT's names, without the padding up to the largest rank."""
        ...

    def write(self, slot: int, matrix: "Tensor", tensors: "Mapping[str, Tensor]") -> None:
        """Overwrite a slot's row of a [K, n] matrix with tensors as `read` returns them."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotRequest:
    """The slots that a training needs.

    `recipe` is that of any of the adapters: they agree in what `AdapterKind.slot_group` returns. `rank` is the largest of any. `probe`
    are token ids that a backend may run once, to see which layers read the same tensor. `frozen_adapters` are PEFT folders that get the
    frozen slots 1, 2, ...; 0 is none. `checkpointing` recomputes activations in the backward pass instead of keeping them.
    """

    recipe: Recipe
    n_slots: int
    rank: int
    probe: tuple[int, ...]
    frozen_adapters: tuple[Path, ...] = ()
    checkpointing: bool = False


class AdapterKind(ABC):
    """An entry of `ADAPTER_KINDS`. What is not overridden is done by PEFT."""

    name: str
    """The value of `recipe.kind`."""
    is_additive: bool = False
    """Whether an adapter is a sum of low-rank updates of weights: such adapters can be merged, combined, and frozen under others."""

    @abstractmethod
    def peft_config(self, base: "BaseModel", recipe: Recipe) -> "PeftConfig":
        """Return PEFT's configuration of an adapter of this recipe; it is written as `adapter_config.json`."""

    @abstractmethod
    def describes(self, config: Mapping[str, Any]) -> bool:
        """Return whether an `adapter_config.json` is that of an adapter of this kind."""

    def initialise(self, model: "PeftModel", recipe: Recipe) -> None:  # noqa: B027
        """Set the new adapter of a PEFT model to what one of this recipe starts from; by default it stays as PEFT made it."""

    def weights_of(self, config: Mapping[str, Any], tensors: "Mapping[str, Tensor]", *, name: str) -> "Weights | None":  # noqa: ARG002
        """Return what an adapter adds to the base, from what PEFT saves of it; None where PEFT alone can add it, from its folder.

        Raises:
            BadData: the tensors are not what its kind has; `name` is the adapter's in errors.
        """
        return None

    def slot_group(self, recipe: Recipe) -> Hashable | None:  # noqa: ARG002
        """Return what adapters must agree in to share slots; None for a kind without slots."""
        return None

    def scale(self, recipe: Recipe) -> float:
        """Return the factor of an adapter's update."""
        raise NotImplementedError(f"{self.name} has no slots, where {recipe} would have a scale")

    def why_not_stacked(self, base: "BaseModel", recipe: Recipe) -> str | None:  # noqa: ARG002
        """Return why adapters of this recipe cannot share passes on this base; None if they can."""
        return f"adapters of kind {self.name} cannot share a pass"

    def n_parameters(self, base: "BaseModel", recipe: Recipe) -> int:
        """Return the number of parameters of a slot."""
        raise NotImplementedError(f"{self.name} has no slots, where {recipe} would have parameters on {base.name}")

    def slots(self, base: "BaseModel", request: SlotRequest) -> "tuple[Slots, Backend]":
        """Return zeroed slots, and the backend that runs batches with them forward and backward.

        Raises:
            BadSettings: the base lacks the target modules, or its backend cannot do what is asked.
        """
        raise NotImplementedError(f"{self.name} has no slots for {request} on {base.name}")
