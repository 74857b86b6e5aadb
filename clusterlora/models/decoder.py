"""The Llama family's decoder, written out over the weights of a transformers model.

legend   N tokens of all rows, n rows of a run, t token of a row, d width, D outputs of a layer, H query heads, G key-value heads,
         e width of a head, V vocabulary

    a = norm(x)    q, k, v = a Wqkv^T    x <- x + attention(rope(q), rope(k), v) Wo^T
    m = norm(x)    g, u = m Wgu^T        x <- x + (silu(g) * u) Wd^T

Linear layers that read the same tensor are one site: one product with their weights one under another. What a transformers model adds
to these lines (module calls, masks, caches made for every occasion) costs a small model more than the arithmetic; here a pass is a few
dozen operations per layer, and training knows exactly what it has to keep.
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

from clusterlora.models.memory import tokens_at_once
from clusterlora.models.packing import Padding

_FAMILY = frozenset({"LlamaForCausalLM", "Qwen2ForCausalLM"})
_ROPE = frozenset({"default", "linear", "llama3"})
"""Rotary embeddings whose angles depend on the position alone, not on how long the sequence is."""

PAD_TO = 16
"""Rows are padded to a multiple of so many tokens: kernels are made for a shape, and few shapes mean few of them."""
LOGITS_AT_ONCE = {"cpu": 1 << 22, "cuda": 1 << 27}
"""Numbers of logits held at a time."""


@dataclass(frozen=True, slots=True)
class Site:
    """Linear layers that read the same tensor. `weight` holds theirs one under another, D outputs in all; the layers keep views of it."""

    names: tuple[str, ...]
    d_outs: tuple[int, ...]
    weight: Float[Tensor, "D d_in"]
    bias: Float[Tensor, " D"] | None

    @property
    def weights(self) -> tuple[Float[Tensor, "_D d_in"], ...]:
        """The weights of each layer."""
        return self.weight.split(self.d_outs)

    def apart(self, x: Float[Tensor, "N d_in"]) -> list[Float[Tensor, "N _D"]]:
        """Return each layer's outputs: views of one product on a GPU, products by themselves on a CPU, which is slow on strided views."""
        if self.weight.is_cuda:
            return list(functional.linear(x, self.weight, self.bias).split(self.d_outs, -1))
        biases = [None] * len(self.d_outs) if self.bias is None else self.bias.split(self.d_outs)
        return [functional.linear(x, weight, bias) for weight, bias in zip(self.weights, biases, strict=True)]


@dataclass(frozen=True, slots=True)
class Block:
    """One layer: its two norms and four sites."""

    norm_in: Float[Tensor, " d"]
    qkv: Site
    out: Site
    norm_mid: Float[Tensor, " d"]
    gate_up: Site
    down: Site

    @property
    def sites(self) -> tuple[Site, Site, Site, Site]:
        """The sites in the order they run."""
        return self.qkv, self.out, self.gate_up, self.down


class Decoder:
    """The parts of a model of the family, and the lines above that need no weights."""

    def __init__(self, model: Any) -> None:
        """Take the weights of a transformers model; they are shared, not copied."""
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
        self._turns: tuple[Tensor, Tensor] = self._turns_up_to(256)

    @property
    def sites(self) -> tuple[Site, ...]:
        """All sites, in the order they run."""
        return tuple(site for block in self.blocks for site in block.sites)

    @property
    def padding(self) -> Padding:
        """What rows are padded to: little on a CPU; on a GPU, where starting kernels costs more, few kinds of batches of one run each."""
        return Padding(PAD_TO) if self.device.type == "cpu" else Padding(2 * PAD_TO, alike=True)

    @property
    def tokens_at_once(self) -> int:
        """How many tokens a forward pass is best given."""
        return tokens_at_once(max(site.weight.shape[0] for site in self.sites), self.device, self.dtype)

    @property
    def rows_of_logits(self) -> int:
        """For how many tokens logits are held at a time."""
        return max(1, LOGITS_AT_ONCE[self.device.type] // len(self.head))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of weights and activations."""
        return self.embedding.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embedding.device

    def turns(self, places: Int[Tensor, " N"], n_places: int) -> tuple[Float[Tensor, "N e"], Float[Tensor, "N e"]]:
        """Return cosine and signed sine of the angles of tokens at these places of their rows, as `rotate` takes them.

        Args:
            n_places: more than any of the places.
        """
        cos, sin = self._turns
        if n_places > len(cos):
            # Threads that both find too few each work with their own.
            cos, sin = self._turns = self._turns_up_to(max(n_places, 2 * len(cos)))
        return cos[places], sin[places]

    def _turns_up_to(self, n: int) -> tuple[Tensor, Tensor]:
        cos, sin = self._rotary(self.embedding[:1], torch.arange(n, device=self.device)[None])
        sign = torch.ones_like(sin[0, 0])
        sign[: self.head_dim // 2] = -1
        return cos[0].contiguous(), sin[0] * sign

    def norm(self, x: Float[Tensor, "... d"], weight: Float[Tensor, " d"]) -> tuple[Tensor, Tensor, Tensor]:
        """Return (weight * unit, unit, inverse root mean square); `unit` is x over its root mean square, taken in float32 or wider."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        inverse = torch.rsqrt(torch.linalg.vecdot(wide, wide)[..., None] / x.shape[-1] + self._eps)
        unit = (wide * inverse).to(x.dtype)
        return unit * weight, unit, inverse

    def heads(self, qkv: Sequence[Float[Tensor, "N _D"]], cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return turned queries [N H e], turned keys [N G e] and values [N G e]."""
        q, k, v = (part.unflatten(-1, (-1, self.head_dim)) for part in qkv)
        return rotate(q, cos, sin), rotate(k, cos, sin), v

    def attend(
        self,
        queries: Float[Tensor, "n t H e"],
        keys: Float[Tensor, "n s G e"],
        values: Float[Tensor, "n s G e"],
        sees: Bool[Tensor, "n 1 t s"] | None = None,
    ) -> Float[Tensor, "n t H*e"]:
        """Return what each token finds in what it `sees`, by default in itself and those before it in its row; heads side by side."""
        narrow = queries.dtype
        if not queries.is_cuda:
            # The CPU's kernel for bfloat16 is several times slower than the one for float32.
            queries, keys, values = (part.to(torch.promote_types(narrow, torch.float32)) for part in (queries, keys, values))
        grouped = self.n_kv_heads < self.n_heads
        q, k, v = (part.transpose(1, 2) for part in (queries, keys, values))
        found = functional.scaled_dot_product_attention(q, k, v, attn_mask=sees, is_causal=sees is None, enable_gqa=grouped)
        return found.transpose(1, 2).flatten(2).to(narrow)


def rotate(x: Float[Tensor, "N h e"], cos: Float[Tensor, "N e"], sin: Float[Tensor, "N e"]) -> Float[Tensor, "N h e"]:
    """Return heads turned by the angles of their places, given as cosine and signed sine. With -sin it is the way back."""
    cos, sin = cos[:, None], sin[:, None]
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


_decoders: "WeakKeyDictionary[nn.Module, Decoder | None]" = WeakKeyDictionary()


def decoder_of(model: nn.Module) -> Decoder | None:
    """Return the model's decoder, the same one every time; None when its architecture is not one this file writes out."""
    known = _decoders.get(model)
    if known is None or known.embedding.dtype != known.blocks[0].qkv.weight.dtype or known.device != known.blocks[0].qkv.weight.device:
        # Not seen before, or moved since: what is joined here does not move with the model.
        known = _decoders[model] = Decoder(model) if _is_of_the_family(model) else None
    return known


def _is_of_the_family(model: Any) -> bool:
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
        qkv=_site(f"{path}.self_attn", {"q_proj": attention.q_proj, "k_proj": attention.k_proj, "v_proj": attention.v_proj}),
        out=_site(f"{path}.self_attn", {"o_proj": attention.o_proj}),
        norm_mid=layer.post_attention_layernorm.weight,
        gate_up=_site(f"{path}.mlp", {"gate_proj": mlp.gate_proj, "up_proj": mlp.up_proj}),
        down=_site(f"{path}.mlp", {"down_proj": mlp.down_proj}),
    )


@torch.no_grad()
def _site(path: str, layers: dict[str, nn.Linear]) -> Site:
    names = tuple(f"{path}.{name}" for name in layers)
    d_outs = tuple(layer.out_features for layer in layers.values())
    if len(layers) == 1:
        (alone,) = layers.values()
        return Site(names, d_outs, alone.weight, alone.bias)
    weight = torch.cat([layer.weight for layer in layers.values()])
    for layer, part in zip(layers.values(), weight.split(d_outs), strict=True):
        layer.weight = nn.Parameter(part, requires_grad=False)
    biases = [layer.bias for layer in layers.values()]
    if all(bias is None for bias in biases):
        return Site(names, d_outs, weight, None)
    return Site(
        names, d_outs, weight, torch.cat([weight.new_zeros(n) if bias is None else bias for n, bias in zip(d_outs, biases, strict=True)])
    )
