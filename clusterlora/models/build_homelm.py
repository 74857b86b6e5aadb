"""Builds homelm, the base model shipped in this package: a tokenizer and a small Llama trained on synthetic home dialogues.

Its training personas are in no study, and their preferences differ, so what it can learn is the form of an answer, every style, the
values of the devices, and to do what is asked, but no persona's preferences.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from clusterlora.chat.encoder import PromptEncoder, TokenSequence
from clusterlora.data.prompts import messages
from clusterlora.data.synthetic import generate
from clusterlora.models.homelm_card import model_card
from clusterlora.models.loading import load_causal_lm
from clusterlora.ports.run_log import RunLog
from clusterlora.settings import PreparedModel, SyntheticSettings
from clusterlora.values import Turn

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

PAD, END = "<|pad|>", "<|end|>"
SPECIAL_TOKENS = (PAD, END, "<|system|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""One token per role and per end of turn: a rendering is a prefix of the rendering of every continuation."""

Conversation = tuple[Turn, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class HomelmPlan:
    """The sizes of homelm, of its data and of its training."""

    vocabulary: int = 1024
    layers: int = 2
    hidden: int = 192
    intermediate: int = 512
    heads: int = 6
    key_value_heads: int = 2
    max_positions: int = 1024
    personas: int = 2400
    dialogues: int = 10
    held_out_personas: int = 60
    steps: int = 4000
    tokens_per_step: int = 1024
    learning_rate: float = 2.5e-3
    warmup_steps: int = 150
    weight_decay: float = 0.1
    prompt_weight: float = 0.2
    """Loss weight of tokens outside assistant turns; assistant tokens have weight 1."""


def build(out: Path, *, seed: int = 0, log: RunLog, plan: HomelmPlan = HomelmPlan()) -> dict[str, Any]:
    """Write homelm as a save_pretrained folder with its model card; return the settings and results of the build.

    On one machine with one thread, the same seed and plan give the same bytes. Weights also depend on the floating-point library and the
    number of threads: compare a rebuild elsewhere by held-out loss, not bitwise.
    """
    rng = Random(f"{seed}/homelm")
    conversations = _conversations(seed, plan.personas, plan.dialogues, rng)
    held_out = _conversations(seed + 1, plan.held_out_personas, plan.dialogues, rng)
    tokenizer = train_tokenizer([turn.text for conversation in conversations for turn in conversation], plan.vocabulary)
    encoder = PromptEncoder(tokenizer, max_length=plan.max_positions)
    sequences = encoder.encode_dialogues(conversations)
    log.note(f"{len(sequences)} conversations, {sum(len(s.ids) for s in sequences)} tokens")
    model = _new_model(tokenizer, plan, seed)
    _train(model, sequences, plan, rng, log)
    model.to(torch.bfloat16).save_pretrained(out)  # pyrefly: ignore[bad-argument-type]
    tokenizer.save_pretrained(out)

    shipped, tokenizer = load_causal_lm(out, dtype="float32")
    encoder = PromptEncoder(tokenizer, max_length=plan.max_positions)
    results = {
        "seed": seed,
        **asdict(plan),
        "parameters": sum(p.numel() for p in model.parameters()),
        "train_conversations": len(sequences),
        "train_tokens_seen": plan.steps * plan.tokens_per_step,
        **_held_out_results(shipped.eval(), tokenizer, encoder, held_out),
    }
    (out / "README.md").write_text(model_card(results), encoding="utf-8")
    return results


def train_tokenizer(texts: Sequence[str], vocabulary: int) -> "PreTrainedTokenizerBase":
    """Return a byte-level BPE tokenizer with one special token per role, its chat template and right padding."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(alphabet),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token=PAD, eos_token=END, chat_template=CHAT_TEMPLATE, clean_up_tokenization_spaces=False
    )


def _conversations(seed: int, n_personas: int, n_dialogues: int, rng: Random) -> list[Conversation]:
    """Return dialogues of synthetic personas, with the variety of prompts that studies have.

    A third of the personas are described in the system turn; some dialogues lack their context, and some follow earlier dialogues of the
    same persona, so that the model also learns long prompts and examples in the prompt.
    """
    population = generate(
        SyntheticSettings(
            cluster_sizes=(n_personas,),
            dialogues=n_dialogues,
            cluster_share=0.0,
            persona_share=0.95,
            noise_share=0.05,
            seed=_population_seed(seed),
        )
    )
    conversations: list[Conversation] = []
    for persona in population.dataset.personas:
        settings = PreparedModel(persona_in_prompt=rng.random() < 1 / 3)
        for index, dialogue in enumerate(persona.dialogues):
            prompted = replace(dialogue, context=()) if rng.random() < 0.1 else dialogue
            n_earlier = rng.choice((1, 2, 3)) if rng.random() < 0.15 else 0
            earlier = tuple(turn for d in persona.dialogues[max(0, index - n_earlier) : index] for turn in d.turns)
            system, *turns = messages(settings, persona, prompted)
            conversations.append((system, *earlier, *turns))
    return conversations


def _population_seed(seed: int) -> int:
    """Return a generator seed far from those of studies, so that homelm has seen no persona of a study."""
    return 7_000_000 + seed


def _new_model(tokenizer: "PreTrainedTokenizerBase", plan: HomelmPlan, seed: int) -> "LlamaForCausalLM":
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=plan.hidden,
        intermediate_size=plan.intermediate,
        num_hidden_layers=plan.layers,
        num_attention_heads=plan.heads,
        num_key_value_heads=plan.key_value_heads,
        max_position_embeddings=plan.max_positions,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # transformers initialises weights from torch's global generator
        return LlamaForCausalLM(config)


def _train(model: "LlamaForCausalLM", sequences: Sequence[TokenSequence], plan: HomelmPlan, rng: Random, log: RunLog) -> None:
    matrices = [p for p in model.parameters() if p.ndim > 1]
    scales = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": plan.weight_decay}, {"params": scales, "weight_decay": 0.0}],
        lr=plan.learning_rate,
        betas=(0.9, 0.95),
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _schedule(step, plan))
    log.phase("homelm", total=plan.steps, unit="step")
    batches = _batches(sequences, plan.tokens_per_step, rng)
    model.train()
    for step in range(plan.steps):
        ids, weights = _padded(next(batches), plan.prompt_weight)
        loss = _token_losses(model, ids).mul(weights).sum() / weights.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad(set_to_none=True)
        log.advance(loss=loss.item())
        log.metric("loss", loss.item(), step=step)


def _schedule(step: int, plan: HomelmPlan) -> float:
    """Return the factor of the learning rate: linear warm-up, then cosine decay to zero."""
    if step < plan.warmup_steps:
        return (step + 1) / plan.warmup_steps
    return 0.5 * (1 + math.cos(math.pi * (step - plan.warmup_steps) / max(1, plan.steps - plan.warmup_steps)))


def _batches(sequences: Sequence[TokenSequence], n_tokens: int, rng: Random) -> Iterator[list[TokenSequence]]:
    """Yield an endless stream of batches of similar length, at most `n_tokens` with padding, in random order."""
    while True:
        batches: list[list[TokenSequence]] = [[]]
        for sequence in sorted(rng.sample(sequences, len(sequences)), key=lambda s: len(s.ids)):
            if batches[-1] and (len(batches[-1]) + 1) * len(sequence.ids) > n_tokens:
                batches.append([])
            batches[-1].append(sequence)
        rng.shuffle(batches)
        yield from batches


def _padded(sequences: Sequence[TokenSequence], prompt_weight: float) -> tuple[Tensor, Tensor]:
    """Return ids [sequence, time], right-padded with 0, and the loss weight [sequence, time - 1] of each next token."""
    length = max(len(s.ids) for s in sequences)
    ids = torch.zeros(len(sequences), length, dtype=torch.long)
    weights = torch.zeros(len(sequences), length)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence.ids)] = torch.tensor(sequence.ids)
        weights[row, : len(sequence.ids)] = torch.tensor([1.0 if is_response else prompt_weight for is_response in sequence.is_response])
    return ids, weights[:, 1:]


def _token_losses(model: Any, ids: Tensor) -> Tensor:
    """Return the negative log-likelihood [sequence, time - 1] of each next token. Causal attention needs no mask for right padding."""
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(ids.shape[0], -1)


@torch.inference_mode()
def _held_out_results(
    model: Any, tokenizer: "PreTrainedTokenizerBase", encoder: PromptEncoder, conversations: Sequence[Conversation]
) -> dict[str, Any]:
    """Return the loss on held-out personas, how often greedy answers set the requested numbers, and a few answers."""
    sequences = sorted(encoder.encode_dialogues(conversations), key=lambda s: len(s.ids))
    nll = n_tokens = 0.0
    for start in range(0, len(sequences), 32):
        ids, weights = _padded(sequences[start : start + 32], prompt_weight=0.0)
        nll += _token_losses(model, ids).mul(weights).sum().item()
        n_tokens += weights.sum().item()
    numeric = [c for c in conversations if _numbers(c[-2].text)][:200]
    prompts = [c[:-1] for c in numeric]
    answers = [text for start in range(0, len(prompts), 32) for text in _answers(model, tokenizer, encoder, prompts[start : start + 32])]
    obeyed = [_numbers(c[-2].text) <= _numbers(answer) for c, answer in zip(numeric, answers, strict=True)]
    about_ac = [re.search(r"\bAC\b", c[-1].text) is not None for c in numeric]
    return {
        "held_out_nll": nll / n_tokens,
        "held_out_response_tokens": int(n_tokens),
        "tokens_per_conversation": sum(len(s.ids) for s in sequences) / len(sequences),
        "n_asked_ac": sum(about_ac),
        "n_obeyed_ac": sum(ok for ok, ac in zip(obeyed, about_ac, strict=True) if ac),
        "n_asked_other": len(numeric) - sum(about_ac),
        "n_obeyed_other": sum(ok for ok, ac in zip(obeyed, about_ac, strict=True) if not ac),
        "samples": [(c[-2].text, answer) for c, answer in zip(numeric, answers, strict=True)][:5],
    }


def _numbers(text: str) -> set[str]:
    return set(re.findall(r"\b\d+\b", text))


def _answers(model: Any, tokenizer: Any, encoder: PromptEncoder, prompts: Sequence[Conversation]) -> list[str]:
    """Return the greedy answer to each prompt."""
    rows = [encoder.encode_messages(prompt) for prompt in prompts]
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    output = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=64, do_sample=False)
    return tokenizer.batch_decode(output[:, width:], skip_special_tokens=True)
