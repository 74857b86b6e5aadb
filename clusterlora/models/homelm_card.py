"""The model card of homelm, written from the facts of the run that built it."""

from collections.abc import Mapping
from typing import Any

_CARD = """\
---
license: apache-2.0
language: en
pipeline_tag: text-generation
---
# homelm
A small chat model of smart-home talk, shipped inside clusterlora so that a study runs without a hub or a GPU.

| | |
|---|---|
| architecture | Llama: {layers} layers, hidden {hidden}, MLP {intermediate}, {heads} heads ({key_value_heads} key/value), tied embeddings |
| parameters | {parameters:,}, stored as bf16 safetensors, meant to be loaded as float32 |
| tokenizer | byte-level BPE, {vocabulary} tokens; `<|system|>`, `<|user|>`, `<|assistant|>`, `<|end|>` (end of turn), `<|pad|>` |
| context | {max_positions} positions; trained on conversations of {tokens_per_conversation:.0f} tokens on average |
| licence | Apache-2.0 |

## Data
{train_conversations:,} conversations of {personas:,} people invented by `clusterlora.data.synthetic` (seed apart from those of
studies, no clusters, every person with preferences of their own). No text of anybody real. A third of the people are described in
the system turn; a few conversations carry on earlier dialogues of the same person.

## How it was built
    clusterlora models build homelm --seed {seed}

{steps:,} steps of about {tokens_per_step:,} tokens, AdamW at {learning_rate:g} with a cosine schedule, on a CPU. Words of the assistant
weigh 1, all others {prompt_weight:g}. With one thread (`OMP_NUM_THREADS=1`) on one machine the command is deterministic; elsewhere compare
the held-out loss instead of the bytes.

## Measured on {held_out_personas} people it never saw
- Negative log-likelihood of the assistant's tokens: **{held_out_nll:.3f}** nats per token, over {held_out_response_tokens:,} tokens.
- Requests with numbers, whose greedy answer contains every number asked for:
  **{n_obeyed_ac} of {n_asked_ac}** for the air conditioning, **{n_obeyed_other} of {n_asked_other}** for the other devices.

| request | greedy answer |
|---|---|
{samples}

## Limits
It knows five devices (TV, air conditioning, lights, speaker, security), the values that the generator uses (percentages in steps
of five, 16 to 30 degrees) and a few hundred words. The counts above say how far it can be trusted
to set what it is asked to set. It is a base for adapters in experiments, not an assistant.
"""


def model_card(facts: Mapping[str, Any]) -> str:
    """Return the README.md of the folder that a build with these facts wrote."""
    samples = "\n".join(f"| {request} | {answer} |" for request, answer in facts["samples"])
    return _CARD.format(**{**facts, "samples": samples})
