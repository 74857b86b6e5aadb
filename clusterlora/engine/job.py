"""Training jobs and results, and the schedule that both engines follow: same batches, same learning rates, same initial A."""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from clusterlora.chat.encoder import TokenSequence
from clusterlora.errors import TrainingDiverged
from clusterlora.recipe import Recipe


@dataclass(frozen=True, slots=True)
class TrainingJob:
    """One adapter to train, on token sequences. `scratch` holds its checkpoints; `init_from` and `frozen_adapter` are PEFT folders.

    `key` identifies everything that it is trained from; a checkpoint of another key is refused. The loss on `val` is computed after every
    epoch if the recipe has patience.
    """

    key: str
    name: str
    recipe: Recipe
    sequences: tuple[TokenSequence, ...]
    scratch: Path
    init_from: Path | None = None
    frozen_adapter: Path | None = None
    val: tuple[TokenSequence, ...] = ()

    def __post_init__(self) -> None:
        if self.recipe.patience and not self.val:
            raise ValueError(f"recipe.patience={self.recipe.patience} needs val dialogues, but {self.name} has none")

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps per epoch."""
        return math.ceil(len(self.sequences) / self.recipe.batch_size)

    @property
    def total_steps(self) -> int:
        """Optimiser steps of all epochs."""
        return total_steps(self.recipe, len(self.sequences))


@dataclass(frozen=True, slots=True)
class UnfinishedAdapter:
    """An adapter after one of its epochs, but not the last: what a caller is shown while training goes on."""

    job: TrainingJob
    epoch: int
    """Finished epochs, from 1."""
    write: Callable[[], Path]
    """Writes the weights as they are as a PEFT folder, which the next epoch overwrites, and returns it."""


OnEpoch = Callable[[UnfinishedAdapter], None]


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """A finished adapter: its PEFT folder, and the loss (mean nats per response token) of every optimiser step.

    `val_losses` are the losses on the val dialogues after each epoch; the weights are those of the epoch with the lowest.
    """

    job: TrainingJob
    folder: Path
    losses: tuple[float, ...]
    seconds: float
    val_losses: tuple[float, ...] = ()

    @property
    def name(self) -> str:
        """The adapter's name."""
        return self.job.name

    @property
    def epochs(self) -> int:
        """Epochs trained; fewer than the recipe's where patience ended it."""
        return len(self.losses) // self.job.steps_per_epoch

    @property
    def train_tokens(self) -> int:
        """Tokens of all dialogues times the epochs trained."""
        return self.epochs * sum(len(sequence.ids) for sequence in self.job.sequences)

    @property
    def loss_fell(self) -> bool:
        """Whether the last quarter of the steps had a lower mean loss than the first quarter."""
        quarter = max(1, len(self.losses) // 4)
        return sum(self.losses[-quarter:]) < sum(self.losses[:quarter])


def total_steps(recipe: Recipe, n_sequences: int) -> int:
    """Return the optimiser steps of all epochs on this many sequences."""
    return math.ceil(n_sequences / recipe.batch_size) * recipe.epochs


def diverged(jobs: Sequence[TrainingJob]) -> TrainingDiverged:
    """Return the error that names the jobs whose loss, or whose weights after the last step, are not finite."""
    names = ", ".join(f"{job.name} (learning_rate={job.recipe.learning_rate})" for job in jobs)
    subject, whose = ("adapters", "their") if len(jobs) > 1 else ("adapter", "its")
    return TrainingDiverged(
        f"{subject} {names} diverged: {whose} loss or weights are not finite; lower recipe.learning_rate, or mend the base if its own loss "
        "is not finite",
        adapters=tuple(job.name for job in jobs),
    )


def mean_by_step(curves: Sequence[Sequence[float]]) -> list[float]:
    """Return the mean loss at every step over the curves that reach it."""
    at_step = [[curve[step] for curve in curves if step < len(curve)] for step in range(max(map(len, curves)))]
    return [sum(losses) / len(losses) for losses in at_step]


def out_of_patience(recipe: Recipe, val_losses: Sequence[float]) -> bool:
    """Return whether the lowest val loss (one per epoch so far) is `recipe.patience` epochs old."""
    if recipe.patience is None or not val_losses:
        return False
    return len(val_losses) - 1 - val_losses.index(min(val_losses)) >= recipe.patience


def batches(job: TrainingJob, epoch: int) -> list[list[int]]:
    """Return the indices into `job.sequences` of each optimiser step of an epoch: a permutation drawn from seed and epoch."""
    order = np.random.default_rng([job.recipe.seed, epoch]).permutation(len(job.sequences)).tolist()
    size = job.recipe.batch_size
    return [order[start : start + size] for start in range(0, len(order), size)]


def learning_rate(recipe: Recipe, step: int, total_steps: int) -> float:
    """Return the learning rate of a step in 0..total_steps - 1: a linear warm-up, then the schedule's decay towards zero."""
    warmup = math.ceil(recipe.warmup_ratio * total_steps)
    if step < warmup:
        return recipe.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, total_steps - warmup)
    decay = {"constant": 1.0, "linear": 1 - progress, "cosine": 0.5 * (1 + math.cos(math.pi * progress))}
    return recipe.learning_rate * decay[recipe.schedule]


def initial_a(name: str, *, rank: int, d_in: int, seed: int) -> Float[Tensor, "rank d_in"]:
    """Return the initial A of every adapter of this rank and seed in the layer `name`: uniform in +-1 / sqrt(d_in).

    PEFT's distribution (Kaiming with a = sqrt 5), but adapters share one draw: averages of adapters with different initial A lose most of
    their norm.
    """
    seed_of_layer = int.from_bytes(hashlib.sha256(f"{name}/{rank}/{d_in}/{seed}".encode()).digest()[:7])
    generator = torch.Generator().manual_seed(seed_of_layer)
    return (2 * torch.rand(rank, d_in, generator=generator) - 1) / math.sqrt(d_in)
