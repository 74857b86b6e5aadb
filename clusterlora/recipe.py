"""The recipe of one adapter: what both the settings of a study and the engine that trains it are written in.

Bounds are `annotated_types`, as in `settings`; the string under a field is its help text.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le

ENGINE_VERSION = 4
"""Increment it when the same inputs give other weights."""

MOST_ALPHA = 10_000.0
"""Largest alpha of an adapter."""
MOST_RANK = 256
"""Largest rank of an adapter."""
MOST_EPOCHS = 10_000
"""Most epochs of a training: more are a slip, and the steps of an adapter are planned before it begins."""
MOST_ROWS = 65_536
"""Most dialogues of a batch."""
MOST_LEARNING_RATE = 10.0
"""Highest peak learning rate; AdamW moves a weight by about as much in a step."""
MOST_SEED = 2**32 - 1
"""Largest seed that every generator takes: scikit-learn's are of 32 bits."""
ALL_LINEAR = "all-linear"
"""The target that stands for every linear layer of the blocks, as in PEFT."""

_FORM = {"extra": "forbid", "use_attribute_docstrings": True}


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Hyper-parameters of one adapter."""

    __pydantic_config__ = _FORM

    kind: str = "lora"
    """Kind of adapter: lora, rslora (LoRA scaled by alpha / sqrt(r)), dora, ia3 or prefix. dora and ia3 are trained one after another."""
    rank: Annotated[int, Ge(1), Le(MOST_RANK)] = 8
    """LoRA rank r; of a prefix, its virtual tokens. Methods with prefixes or residuals have their own. ia3 has no rank."""
    alpha: Annotated[float, Gt(0), Le(MOST_ALPHA)] = 16.0
    """LoRA alpha; the update is scaled by alpha / r."""
    dropout: Annotated[float, Ge(0), Le(0.9)] = 0.05
    """Dropout on the adapter's input."""
    target_modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    """Linear layers that get an update, by the end of their name. A base whose layers have other names gets one on all linear layers of its
    blocks instead of these, and so does every base with all-linear. The names of a mixture's experts reach these through PEFT alone."""
    epochs: Annotated[int, Ge(1), Le(MOST_EPOCHS)] = 3
    """Passes over the adapter's train dialogues."""
    patience: Annotated[int, Ge(1), Le(MOST_EPOCHS)] | None = None
    """Stop an adapter when the loss on its personas' val dialogues has not decreased for N epochs, and use its best epoch.
    Empty: train all epochs and use the last one."""
    batch_size: Annotated[int, Ge(1), Le(MOST_ROWS)] = 2
    """Dialogues per optimiser step."""
    learning_rate: Annotated[float, Gt(0), Le(MOST_LEARNING_RATE)] = 5e-4
    """Peak learning rate of AdamW."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the learning rate decays after warm-up."""
    warmup_ratio: Annotated[float, Ge(0), Le(0.5)] = 0.03
    """Share of the steps spent warming up."""
    weight_decay: Annotated[float, Ge(0), Le(100)] = 0.0
    """AdamW's decoupled weight decay."""
    max_grad_norm: Annotated[float, Gt(0), Le(1e9)] = 1.0
    """Gradient norm of the whole adapter is clipped to this."""
    seed: Annotated[int, Ge(0), Le(MOST_SEED)] = 0
    """Seed of the order of dialogues and of dropout. The initial A of one rank is the same for all adapters of a study."""


def problems(recipe: Recipe) -> Iterator[str]:
    """Yield what is wrong with a recipe that was not read from settings: the field, its value and what it may be."""
    for name, hint in get_type_hints(Recipe, include_extras=True).items():
        value = getattr(recipe, name)
        if (allowed := _allowed(hint, value)) is not None:
            yield f"recipe.{name} = {value!r}: use {allowed}"


def _allowed(hint: Any, value: Any) -> str | None:
    """Return what a field of this type may be; None if the value is that."""
    if get_origin(hint) in (Union, UnionType):
        refused = [_allowed(option, value) for option in get_args(hint)]
        return None if None in refused else " or ".join(filter(None, refused))
    if get_origin(hint) is Literal:
        return None if value in get_args(hint) else " or ".join(map(repr, get_args(hint)))
    if get_origin(hint) is tuple:
        fits = isinstance(value, tuple) and all(_allowed(get_args(hint)[0], part) is None for part in value)
        return None if fits else "a tuple of names"
    if get_origin(hint) is not Annotated:
        return None if isinstance(value, hint) and type(value) is not bool else _PLAIN.get(hint, hint.__name__)
    kind, *bounds = get_args(hint)
    if type(value) is bool or not isinstance(value, (int, float) if kind is float else kind):
        return _PLAIN[kind]
    for bound in bounds:
        if isinstance(bound, Ge) and not value >= bound.ge:  # pyrefly: ignore[unsupported-operation]
            return f"at least {bound.ge}"
        if isinstance(bound, Gt) and not value > bound.gt:  # pyrefly: ignore[unsupported-operation]
            return f"more than {bound.gt}"
        if isinstance(bound, Le) and not value <= bound.le:  # pyrefly: ignore[unsupported-operation]
            return f"at most {bound.le}"
    return None


_PLAIN = {int: "a whole number", float: "a number", str: "text", type(None): "None"}
