"""The Llama family's decoder, written out over the weights of a transformers model.

legend   N tokens of all rows, n rows of a segment, t token of a row, s key a token may attend to, d width, D outputs of a layer,
         H query heads, G key-value heads, e width of a head, V vocabulary

    a = norm(x)    q, k, v = a Wqkv^T    x <- x + attention(rope(q), rope(k), v) Wo^T
    m = norm(x)    g, u = m Wgu^T        x <- x + (silu(g) * u) Wd^T

Linear layers that read the same tensor are fused: their weights are stacked and multiplied once. The overhead of a transformers model
(module calls, masks, cache objects) costs a small model more time than the arithmetic; here a layer is a few dozen operations, and training
controls exactly which activations are saved.
Source: Touvron et al. 2023, LLaMA (arXiv 2302.13971); Su et al. 2021, rotary embeddings (arXiv 2104.09864).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from clusterlora.engine.memory import tokens_per_chunk
from clusterlora.engine.packing import Padding

_FAMILY = frozenset({"LlamaForCausalLM", "Qwen2ForCausalLM"})
_ROPE = frozenset({"default", "linear", "llama3"})
"""Rotary embeddings whose angles depend on the position alone, not on the length of the sequence."""

PAD_TO = 16
"""Rows are padded to a multiple of this: kernels are chosen and cached per shape, so few shapes are better."""
LOGITS_PER_CHUNK = {"cpu": 1 << 22, "cuda": 1 << 27}
"""Logits in memory at a time, over all tokens and the vocabulary."""


@dataclass(frozen=True, slots=True)
class FusedLinear:
    """Linear layers that read the same tensor. `weight` stacks their weights to D outputs in all; the layers hold views of it."""

    names: tuple[str, ...]
    d_outs: tuple[int, ...]
    weight: Float[Tensor, "D d_in"]
    bias: Float[Tensor, " D"] | None

    @property
    def weights(self) -> tuple[Float[Tensor, "_D d_in"], ...]:
        """The weight of each layer."""
        return self.weight.split(self.d_outs)

    def forward(self, x: Float[Tensor, "N d_in"]) -> list[Float[Tensor, "N _D"]]:
        """Return each layer's outputs: views of one product on a GPU, separate products on a CPU, which is slow on strided views."""
        if self.weight.is_cuda:
            return list(functional.linear(x, self.weight, self.bias).split(self.d_outs, -1))
        biases = [None] * len(self.d_outs) if self.bias is None else self.bias.split(self.d_outs)
        return [functional.linear(x, weight, bias) for weight, bias in zip(self.weights, biases, strict=True)]


@dataclass(frozen=True, slots=True)
class Block:
    """A transformer block: two norms and four fused linears."""

    norm_in: Float[Tensor, " d"]
    qkv: FusedLinear
    out: FusedLinear
    norm_mid: Float[Tensor, " d"]
    gate_up: FusedLinear
    down: FusedLinear

    @property
    def fused_linears(self) -> tuple[FusedLinear, FusedLinear, FusedLinear, FusedLinear]:
        """The fused linears in execution order."""
        return self.qkv, self.out, self.gate_up, self.down


class Decoder:
    """The weights of a Llama-like model, and the parts of its forward pass that training and answering share."""

    def __init__(self, model: Any) -> None:
        """Share the weights of a transformers model; those of fused layers are stacked and the model's layers become views of them."""
        self.embedding: Float[Tensor, "V d"] = model.get_input_embeddings().weight
        self.head: Float[Tensor, "V d"] = model.get_output_embeddings().weight
        self.blocks = tuple(_block(f"model.layers.{n}", layer) for n, layer in enumerate(model.model.layers))
        self.norm_out: Float[Tensor, " d"] = model.model.norm.weight
        attention = model.model.layers[0].self_attn
        self.head_dim: int = attention.head_dim
        self.n_kv_heads: int = model.config.num_key_value_heads
        self.n_heads: int = model.config.num_attention_heads
        self._eps: float = model.config.rms_norm_eps
        self._rotary: nn.Module = model.model.rotary_emb
        self._rope_table: tuple[Tensor, Tensor] = self._compute_rope_table(256)

    @property
    def fused_linears(self) -> tuple[FusedLinear, ...]:
        """All fused linears in execution order, four per block."""
        return tuple(linear for block in self.blocks for linear in block.fused_linears)

    @property
    def padding(self) -> Padding:
        """Little padding on a CPU; uniform padding on a GPU, where launches cost more and recurring shapes become CUDA graphs."""
        return Padding(PAD_TO) if self.device.type == "cpu" else Padding(2 * PAD_TO, uniform=True)

    @property
    def tokens_per_pass(self) -> int:
        """Tokens of a forward pass for which the widest activation stays within `memory.CHUNK_BYTES`."""
        return tokens_per_chunk(max(linear.weight.shape[0] for linear in self.fused_linears), self.device, self.dtype)

    @property
    def logit_rows_per_chunk(self) -> int:
        """Tokens whose logits are in memory at a time."""
        return max(1, LOGITS_PER_CHUNK[self.device.type] // len(self.head))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of weights and activations."""
        return self.embedding.dtype

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.embedding.device

    def rope_cos_sin(self, positions: Int[Tensor, " N"], n_positions: int) -> tuple[Float[Tensor, "N e"], Float[Tensor, "N e"]]:
        """Return the cosine and the signed sine of tokens at these positions, as `apply_rope` takes them.

        Args:
            n_positions: an upper bound, larger than every position; reading it off `positions` would synchronise a GPU.
        """
        cos, sin = self._rope_table
        if n_positions > len(cos):
            # A race between threads is harmless: each uses the table it computed.
            cos, sin = self._rope_table = self._compute_rope_table(max(n_positions, 2 * len(cos)))
        return cos[positions], sin[positions]

    def _compute_rope_table(self, n: int) -> tuple[Tensor, Tensor]:
        cos, sin = self._rotary(self.embedding[:1], torch.arange(n, device=self.device)[None])
        sign = torch.ones_like(sin[0, 0])
        sign[: self.head_dim // 2] = -1
        return cos[0].contiguous(), sin[0] * sign

    def norm(self, x: Float[Tensor, "... d"], weight: Float[Tensor, " d"]) -> tuple[Tensor, Tensor, Tensor]:
        """Return RMSNorm as (weight * unit, unit, inverse), unit = x * inverse, inverse = 1 / rms(x), computed in at least float32."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        inverse = torch.rsqrt(torch.linalg.vecdot(wide, wide)[..., None] / x.shape[-1] + self._eps)
        unit = (wide * inverse).to(x.dtype)
        return unit * weight, unit, inverse

    def heads(self, qkv: Sequence[Float[Tensor, "N _D"]], cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return rotated queries [N H e], rotated keys [N G e] and values [N G e]."""
        q, k, v = (part.unflatten(-1, (-1, self.head_dim)) for part in qkv)
        return apply_rope(q, cos, sin), apply_rope(k, cos, sin), v

    def attend(
        self,
        queries: Float[Tensor, "n t H e"],
        keys: Float[Tensor, "n s G e"],
        values: Float[Tensor, "n s G e"],
        mask: Bool[Tensor, "n 1 t s"] | None = None,
    ) -> Float[Tensor, "n t H*e"]:
        """Return the attention output of each token, heads concatenated; a true `mask` lets it attend, without one attention is causal."""
        dtype = queries.dtype
        if not queries.is_cuda:
            # The CPU's bfloat16 kernel is several times slower than its float32 kernel.
            queries, keys, values = (part.to(torch.promote_types(dtype, torch.float32)) for part in (queries, keys, values))
        grouped = self.n_kv_heads < self.n_heads
        q, k, v = (part.transpose(1, 2) for part in (queries, keys, values))
        attended = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=grouped)
        return attended.transpose(1, 2).flatten(2).to(dtype)


def apply_rope(x: Float[Tensor, "N h e"], cos: Float[Tensor, "N e"], sin: Float[Tensor, "N e"]) -> Float[Tensor, "N h e"]:
    """Return heads rotated by the angles of their positions, given as cosine and signed sine; with -sin the inverse, as backward needs."""
    cos, sin = cos[:, None], sin[:, None]
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


_decoders: "WeakKeyDictionary[nn.Module, Decoder | None]" = WeakKeyDictionary()


def decoder_of(model: nn.Module) -> Decoder | None:
    """Return the model's decoder, cached; None if this file does not implement its architecture."""
    decoder = _decoders.get(model)
    if decoder is None or _is_stale(decoder):
        decoder = _decoders[model] = Decoder(model) if _is_supported(model) else None
    return decoder


def _is_stale(decoder: Decoder) -> bool:
    """Return whether the model was moved or cast after fusing, which leaves the fused weights behind."""
    fused = decoder.blocks[0].qkv.weight
    return (decoder.dtype, decoder.device) != (fused.dtype, fused.device)


def _is_supported(model: Any) -> bool:
    if type(model).__name__ not in _FAMILY:
        return False
    config = model.config
    layers = getattr(config, "layer_types", None) or ()
    plain_layers = all(kind == "full_attention" for kind in layers)
    plain_rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default") in _ROPE
    linears = [module for layer in model.model.layers for name, module in layer.named_modules() if name.endswith("_proj")]
    return plain_layers and plain_rope and config.hidden_act == "silu" and all(type(module) is nn.Linear for module in linears)


def _block(path: str, layer: Any) -> Block:
    attention, mlp = layer.self_attn, layer.mlp
    return Block(
        norm_in=layer.input_layernorm.weight,
        qkv=_fused(f"{path}.self_attn", {"q_proj": attention.q_proj, "k_proj": attention.k_proj, "v_proj": attention.v_proj}),
        out=_fused(f"{path}.self_attn", {"o_proj": attention.o_proj}),
        norm_mid=layer.post_attention_layernorm.weight,
        gate_up=_fused(f"{path}.mlp", {"gate_proj": mlp.gate_proj, "up_proj": mlp.up_proj}),
        down=_fused(f"{path}.mlp", {"down_proj": mlp.down_proj}),
    )


@torch.no_grad()
def _fused(path: str, layers: dict[str, nn.Linear]) -> FusedLinear:
    names = tuple(f"{path}.{name}" for name in layers)
    d_outs = tuple(layer.out_features for layer in layers.values())
    if len(layers) == 1:
        (layer,) = layers.values()
        return FusedLinear(names, d_outs, layer.weight, layer.bias)
    weight = torch.cat([layer.weight for layer in layers.values()])
    for layer, part in zip(layers.values(), weight.split(d_outs), strict=True):
        layer.weight = nn.Parameter(part, requires_grad=False)
    biases = [layer.bias for layer in layers.values()]
    if all(bias is None for bias in biases):
        return FusedLinear(names, d_outs, weight, None)
    return FusedLinear(
        names, d_outs, weight, torch.cat([weight.new_zeros(n) if bias is None else bias for n, bias in zip(d_outs, biases, strict=True)])
    )
