"""Counts necessary floating-point operations: no padding, and the vocabulary projection only where a token is predicted.

legend   T tokens of a sequence, P weights of the linear layers without the vocabulary projection, H weights of that, L layers,
         D width of attention (heads * head width)
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from clusterlora.chat.encoder import TokenSequence


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a model that its number of operations depends on."""

    linear_weights: int
    head_weights: int
    layers: int
    attention_width: int

    def training(self, sequence: TokenSequence) -> float:
        """Return the operations of one sequence in a LoRA training step: forward, and backward to the activations only.

        2 P T forward and 2 P T backward, since frozen weights need no gradient; 4 H per predicted token; causal attention 2 L D T^2
        forward and twice that backward. The adapters' own products are under 2 % and left out.
        """
        t = len(sequence.ids)
        return 4.0 * self.linear_weights * t + 4.0 * self.head_weights * sequence.n_response_tokens + self._attention(t) * 3

    def generating(self, n_prompt: int, n_answer: int) -> float:
        """Return the operations of prefilling a prompt and decoding an answer, each token computed once."""
        t = n_prompt + n_answer
        return 2.0 * self.linear_weights * t + 2.0 * self.head_weights * n_answer + self._attention(t)

    def _attention(self, t: int) -> float:
        return 2.0 * self.layers * self.attention_width * t * t


def shape_of(model: PreTrainedModel) -> Shape:
    """Return a model's sizes."""
    head = model.get_output_embeddings()
    linears: Sequence[nn.Linear] = [m for m in model.modules() if isinstance(m, nn.Linear) and m is not head]
    config = model.config
    head_width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return Shape(
        linear_weights=sum(layer.weight.numel() for layer in linears),
        head_weights=head.weight.numel(),
        layers=config.num_hidden_layers,
        attention_width=config.num_attention_heads * head_width,
    )
