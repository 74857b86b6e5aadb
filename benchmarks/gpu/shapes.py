"""Base models as shapes: configurations of known models with random weights, made on the device, and dialogues of random ids.

Speed depends neither on the values of the weights nor on which ids a dialogue has, so nothing is fetched. It does depend on lengths:
those of the mission's prompts were measured, and are drawn again from their quantiles.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, Qwen2Config

from clusterlora.chat.encoder import TokenSequence
from clusterlora.engine.base import BaseModel
from clusterlora.engine.generation import Question
from clusterlora.engine.job import TrainingJob
from clusterlora.models.base import shipped_homelm
from clusterlora.recipe import Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """The sizes of a known model."""

    name: str
    family: Literal["llama", "qwen2"]
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int
    tied: bool


_SHAPES = (
    ModelShape(
        name="SmolLM2-135M", family="llama", hidden=576, layers=30, heads=9, kv_heads=3, intermediate=1536, vocabulary=49_152, tied=True
    ),
    ModelShape(
        name="Qwen2.5-0.5B", family="qwen2", hidden=896, layers=24, heads=14, kv_heads=2, intermediate=4864, vocabulary=151_936, tied=True
    ),
    ModelShape(
        name="Qwen2.5-1.5B", family="qwen2", hidden=1536, layers=28, heads=12, kv_heads=2, intermediate=8960, vocabulary=151_936, tied=True
    ),
    ModelShape(
        name="Llama-3.1-8B",
        family="llama",
        hidden=4096,
        layers=32,
        heads=32,
        kv_heads=8,
        intermediate=14_336,
        vocabulary=128_256,
        tied=False,
    ),
    # For tests of this program, on a CPU: their figures mean nothing.
    ModelShape(name="tiny llama", family="llama", hidden=32, layers=2, heads=4, kv_heads=2, intermediate=64, vocabulary=4096, tied=False),
    ModelShape(name="tiny qwen2", family="qwen2", hidden=32, layers=2, heads=4, kv_heads=2, intermediate=64, vocabulary=4096, tied=True),
)
SHAPES = {shape.name: shape for shape in _SHAPES}
"""Shapes by the name of the model that has it."""

TOTAL_QUANTILES = (57, 74, 80, 84, 90, 100, 110, 116, 120, 123, 126, 129, 131, 134, 137, 140, 144, 150, 168, 183, 216)
"""Tokens of a dialogue of the mission, at 0 %, 5 %, ... 100 %: 128 synthetic people with 30 dialogues each, SmolLM2's tokenizer."""
RESPONSE_QUANTILES = (8, 23, 27, 30, 34, 36, 39, 43, 47, 50, 52, 54, 56, 59, 61, 63, 66, 70, 77, 87, 113)
"""Tokens of the assistant in them. The two correlate by 0.94, so one draw decides both."""
PROMPT_QUANTILES = (41, 47, 51, 53, 57, 61, 91, 95, 97, 99, 101, 103, 104, 106, 109, 112, 116, 122, 141, 153, 172)
"""Tokens before the last answer of a dialogue."""
SHARED_PREFIX = 13
"""Tokens that all prompts begin with: the system text."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """How long a dialogue is: (tokens, tokens of the assistant); None draws them as in the mission."""

    fixed: tuple[int, int] | None = None

    def draw(self, rng: np.random.Generator) -> tuple[int, int]:
        if self.fixed:
            return self.fixed
        at = rng.random()
        return _quantile(TOTAL_QUANTILES, at), _quantile(RESPONSE_QUANTILES, at)

    def __str__(self) -> str:
        return f"{self.fixed[0]} tokens, {self.fixed[1]} of them learnt" if self.fixed else "the mission's lengths"


MISSION = Lengths()


def random_base(shape: ModelShape, device: torch.device) -> BaseModel:
    """Return a base of this shape in bfloat16, made on the device; the tokenizer is homelm's, for its end and padding tokens."""
    tokenizer = AutoTokenizer.from_pretrained(shipped_homelm(), local_files_only=True)
    common: dict[str, Any] = {
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": shape.tied,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = {"llama": LlamaConfig, "qwen2": Qwen2Config}[shape.family](**common)
    with torch.device(device), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)  # transformers initialises weights from torch's global generator
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    return BaseModel(f"{shape.name} (shape)", "random", model.eval().requires_grad_(False), tokenizer)


def rows(shape: ModelShape, n: int, lengths: Lengths, *, seed: int) -> tuple[TokenSequence, ...]:
    """Return dialogues of random ids, the assistant's part last."""
    rng = np.random.default_rng(seed)
    return tuple(_row(shape, *lengths.draw(rng), rng) for _ in range(n))


def jobs(
    shape: ModelShape,
    n: int,
    *,
    dialogues: int,
    epochs: int,
    scratch: Path,
    lengths: Lengths = MISSION,
    target_modules: tuple[str, ...] | None = None,
) -> list[TrainingJob]:
    """Return n jobs with the mission's recipe: rank 8 on all linear layers, batches of 2, dropout."""
    recipe = Recipe(epochs=epochs)
    if target_modules:
        recipe = replace(recipe, target_modules=target_modules)
    return [
        TrainingJob(
            name,
            name,
            recipe,
            rows(shape, dialogues, lengths, seed=number),
            scratch / name,
        )
        for number in range(n)
        for name in [f"adapter-{number}"]
    ]


def questions(shape: ModelShape, n: int) -> list[Question]:
    """Return a question for each of the slots 1..n, with prompts as long as the mission's."""
    rng = np.random.default_rng(0)
    prompts = [_ids(shape, _quantile(PROMPT_QUANTILES, rng.random()), rng) for _ in range(n)]
    return [Question(prompt, slot, ()) for slot, prompt in enumerate(prompts, start=1)]


def n_tokens(some_jobs: Sequence[TrainingJob]) -> int:
    """Return the tokens that the jobs are trained on, over all epochs, without padding."""
    return sum(job.recipe.epochs * len(row.ids) for job in some_jobs for row in job.sequences)


def _row(shape: ModelShape, total: int, response: int, rng: np.random.Generator) -> TokenSequence:
    return TokenSequence(_ids(shape, total, rng), (False,) * (total - response) + (True,) * response)


def _ids(shape: ModelShape, n: int, rng: np.random.Generator) -> tuple[int, ...]:
    # Ids below are the tokenizer's control tokens.
    drawn = rng.integers(shape.vocabulary // 2, shape.vocabulary, size=n).tolist()
    shared = [shape.vocabulary // 2 + i for i in range(min(n, SHARED_PREFIX))]
    return (*shared, *drawn[len(shared) :])


def _quantile(quantiles: Sequence[int], at: float) -> int:
    return round(float(np.interp(at, np.linspace(0, 1, len(quantiles)), quantiles)))
