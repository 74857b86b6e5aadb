"""Base models to benchmark, and a study's prompts as training jobs and questions."""

import copy
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from benchmarks.flops import Shape, shape_of
from clusterlora.chat.encoder import PromptEncoder
from clusterlora.data.prompts import messages, prompt_encoder
from clusterlora.data.synthetic import generate
from clusterlora.engine.base import BaseModel
from clusterlora.engine.generation import Question
from clusterlora.engine.job import TrainingJob, initial_a
from clusterlora.engine.peft_folder import write_peft_folder
from clusterlora.engine.stacked_lora import targeted_layers
from clusterlora.models.base import load_base
from clusterlora.models.smollm2 import fetch_smollm2
from clusterlora.recipe import Recipe
from clusterlora.settings import Dtype, PreparedModel, SyntheticSettings
from clusterlora.values import Dialogue, Persona

QWEN_SHAPE = "qwen2.5-0.5b-shape"
"""The architecture of the mission's base model with random weights; speed does not depend on their values."""

STUDY_STEPS = 45
"""Optimiser steps of one personal adapter in the mission's study: 30 dialogues, 3 epochs, batches of 2."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A base model for clusterlora and a copy for the peers, some of which patch their model."""

    name: str
    dtype: Dtype
    ours: BaseModel
    theirs: BaseModel
    shape: Shape

    @property
    def device(self) -> torch.device:
        return self.ours.model.device


def load_subject(name: str, *, dtype: Dtype, device: str) -> Subject:
    """Return a base model twice.

    Args:
        name: a name or folder for `load_base`, or QWEN_SHAPE.
    """
    ours = _random_qwen(dtype, device) if name == QWEN_SHAPE else load_base(name, dtype=dtype, device=device)
    return Subject(name, dtype, ours, replace(ours, model=copy.deepcopy(ours.model)), shape_of(ours.model))


def _random_qwen(dtype: Dtype, device: str) -> BaseModel:
    # Qwen's own tokenizer needs a model hub; this one has the same chat format and tokens of similar length.
    tokenizer = AutoTokenizer.from_pretrained(fetch_smollm2(), local_files_only=True)
    config = Qwen2Config(
        vocab_size=151_936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        max_position_embeddings=32_768,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # transformers initialises weights from torch's global generator
        model: PreTrainedModel = Qwen2ForCausalLM(config)
    model = model.to(device, getattr(torch, dtype)).eval().requires_grad_(False)
    return BaseModel(QWEN_SHAPE, "random", model, tokenizer)


def people(n_personas: int, n_dialogues: int) -> tuple[Persona, ...]:
    """Return synthetic personas, the same for every model."""
    return generate(SyntheticSettings(cluster_sizes=(n_personas,), dialogues=n_dialogues)).dataset.personas


def training_jobs(base: BaseModel, n_adapters: int, *, n_dialogues: int, epochs: int, scratch: Path) -> list[TrainingJob]:
    """Return one job per persona with the mission's recipe and prompts."""
    settings, recipe = PreparedModel(), Recipe(epochs=epochs)
    encoder = prompt_encoder(base.tokenizer, settings)
    return [
        TrainingJob(
            persona.id,
            persona.id,
            recipe,
            tuple(encoder.encode_dialogues(messages(settings, persona, dialogue) for dialogue in persona.dialogues)),
            scratch / persona.id,
        )
        for persona in people(n_adapters, n_dialogues)
    ]


def questions(base: BaseModel, n_adapters: int, *, per_adapter: int, described: bool = False) -> list[Question]:
    """Return `per_adapter` questions for each of the slots 1..n_adapters, each for the last answer of a dialogue.

    Args:
        described: describe the persona in the prompts.
    """
    settings = PreparedModel(persona_in_prompt=described)
    encoder = prompt_encoder(base.tokenizer, settings)
    return [
        _last_answer(encoder, settings, persona, dialogue, slot)
        for slot, persona in enumerate(people(n_adapters, max(3, per_adapter)), start=1)
        for dialogue in persona.dialogues[:per_adapter]
    ]


def _last_answer(encoder: PromptEncoder, settings: PreparedModel, persona: Persona, dialogue: Dialogue, slot: int) -> Question:
    turns = messages(settings, persona, dialogue)
    last = max(i for i, turn in enumerate(turns) if turn.role == "assistant")
    (encoded,) = encoder.encode_turns([(turns[:last], turns[last].text)])
    return Question(encoded.prompt, slot, encoded.response)


def write_adapters(base: BaseModel, n_adapters: int, folder: Path) -> list[Path]:
    """Return PEFT folders of adapters with small random changes of the base model, of the size that short training makes."""
    recipe = Recipe()
    folders = []
    for number in range(n_adapters):
        generator = torch.Generator().manual_seed(number)
        tensors = {}
        for name, layer in targeted_layers(base.model, recipe.target_modules).items():
            tensors[f"{name}.lora_A.weight"] = initial_a(name, rank=recipe.rank, d_in=layer.d_in, seed=0)
            # About the change of B in 45 steps of the mission's recipe.
            tensors[f"{name}.lora_B.weight"] = 0.005 * torch.randn(layer.d_out, recipe.rank, generator=generator)
        folders.append(folder / f"adapter-{number}")
        write_peft_folder(folders[-1], tensors, recipe, base=base.name)
    return folders
