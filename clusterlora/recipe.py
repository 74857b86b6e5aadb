"""The recipe of one adapter: what both the settings of a study and the engine that trains it are written in.

Bounds are `annotated_types`, as in `settings`; the string under a field is its help text.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le

AdapterKind = Literal["lora", "prefix"]

_FORM = {"extra": "forbid", "use_attribute_docstrings": True}


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Hyper-parameters of one adapter."""

    __pydantic_config__ = _FORM

    rank: Annotated[int, Ge(1), Le(256)] = 8
    """LoRA rank r. Prefixes and residuals have their own."""
    alpha: Annotated[float, Gt(0)] = 16.0
    """LoRA alpha; the update is scaled by alpha / r."""
    dropout: Annotated[float, Ge(0), Le(0.9)] = 0.05
    """Dropout on the adapter's input."""
    target_modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    """Linear layers that get an update, by the end of their name."""
    epochs: Annotated[int, Ge(1)] = 3
    """Passes over the adapter's train dialogues."""
    patience: Annotated[int, Ge(1)] | None = None
    """Stop an adapter when the loss on its personas' val dialogues has not decreased for N epochs, and use its best epoch.
    Empty: train all epochs and use the last one."""
    batch_size: Annotated[int, Ge(1)] = 2
    """Dialogues per optimiser step."""
    learning_rate: Annotated[float, Gt(0)] = 5e-4
    """Peak learning rate of AdamW."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the learning rate decays after warm-up."""
    warmup_ratio: Annotated[float, Ge(0), Le(0.5)] = 0.03
    """Share of the steps spent warming up."""
    weight_decay: Annotated[float, Ge(0)] = 0.0
    """AdamW's decoupled weight decay."""
    max_grad_norm: Annotated[float, Gt(0)] = 1.0
    """Gradient norm of the whole adapter is clipped to this."""
    seed: Annotated[int, Ge(0)] = 0
    """Seed of the order of dialogues and of dropout. The initial A of one rank is the same for all adapters of a study."""
