"""Attention of packed rows, some of which continue a prefix that another row holds.

legend   N tokens of all rows, n rows of a segment, t token of a row, p token of a prefix, H query heads, G key-value heads,
         e width of a head
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from clusterlora.engine.attention import Heads
from clusterlora.engine.packing import Segment
from clusterlora.engine.prefix_sharing import PrefillSequence, PrefixKey


@dataclass(frozen=True, slots=True)
class _SharedPrefix:
    """Where among all tokens each row's prefix is; what each token attends to, in the prefix and in its own row, and how far back it is."""

    index: Int[Tensor, "n p"]
    mask: Bool[Tensor, "n 1 t p+t"]
    distance: Int[Tensor, "n 1 t p+t"]


@dataclass(frozen=True, slots=True)
class SegmentAttention:
    """The attention of neighbouring rows of one length that all continue a prefix, or none."""

    segment: Segment
    prefix: _SharedPrefix | None

    def attend(
        self, heads: Heads, queries: Float[Tensor, "N H e"], keys: Float[Tensor, "N G e"], values: Float[Tensor, "N G e"]
    ) -> Float[Tensor, "n t H*e"]:
        """Return the attention output of these rows' tokens."""
        q, k, v = (self.segment.view(part) for part in (queries, keys, values))
        if self.prefix is None:
            return heads.attend(q, k, v)
        k, v = (torch.cat([all_rows[self.prefix.index], own], dim=1) for all_rows, own in ((keys, k), (values, v)))
        mask = self.prefix.mask
        if heads.window is not None:
            mask = mask & (self.prefix.distance < heads.window)
        return heads.attend(q, k, v, mask)


def segment_attentions(
    segments: Sequence[Segment],
    sequences: Sequence[PrefillSequence],
    first_token_by_prefix: Mapping[PrefixKey, int],
    device: torch.device,
) -> list[SegmentAttention]:
    """Return the attention of a batch, its segments split between rows with and without a prefix.

    Args:
        sequences: one per row.
        first_token_by_prefix: index of the first token of each prefix's row.
    """
    attentions = []
    for segment in segments:
        row, token = segment.rows.start, segment.tokens.start
        for has_prefix, neighbours in groupby(sequences[segment.rows], key=lambda sequence: sequence.prefix_length > 0):
            rows = list(neighbours)
            n_tokens = len(rows) * segment.length
            part = Segment(slice(row, row + len(rows)), slice(token, token + n_tokens), segment.length)
            prefix = _shared_prefix(rows, segment.length, first_token_by_prefix, device) if has_prefix else None
            attentions.append(SegmentAttention(part, prefix))
            row, token = row + len(rows), token + n_tokens
    return attentions


def _shared_prefix(
    sequences: Sequence[PrefillSequence],
    length: int,
    first_token_by_prefix: Mapping[PrefixKey, int],
    device: torch.device,
) -> _SharedPrefix:
    prefix_length = torch.tensor([sequence.prefix_length for sequence in sequences])[:, None]
    first_token = torch.tensor([first_token_by_prefix[sequence.prefix] for sequence in sequences])[:, None]
    position = torch.arange(int(prefix_length.max()))
    # A shorter prefix is padded with its last token, which the mask hides.
    index = first_token + torch.minimum(position, prefix_length - 1)
    prefix_mask = (position < prefix_length)[:, None, None].expand(-1, 1, length, -1)
    own = torch.arange(length)
    causal_mask = (own[:, None] >= own).expand(len(sequences), 1, -1, -1)
    to_prefix = (prefix_length[:, :, None] + own[:, None] - position)[:, None]
    to_own = (own[:, None] - own).expand(len(sequences), 1, -1, -1)
    mask, distance = torch.cat([prefix_mask, causal_mask], dim=-1), torch.cat([to_prefix, to_own], dim=-1)
    return _SharedPrefix(index.to(device), mask.to(device), distance.to(device))


class PrefillAttention:
    """The `Attention` of one block in a prefill pass; keeps the keys and values."""

    def __init__(self, segments: Sequence[SegmentAttention], selected: Int[Tensor, " M"] | None) -> None:
        """Prepare for a block; `selected` are the indices of the tokens whose output is needed, None all of them."""
        self._segments = segments
        self._selected = selected
        self.keys: Tensor
        self.values: Tensor

    def attend(
        self, heads: Heads, q: Float[Tensor, "N H e"], k: Float[Tensor, "N G e"], v: Float[Tensor, "N G e"]
    ) -> tuple[Float[Tensor, "M He"], None]:
        """See `Attention`."""
        self.keys, self.values = k, v
        attended = torch.empty_like(q).flatten(1)
        for attention in self._segments:
            attention.segment.view(attended).copy_(attention.attend(heads, q, k, v))
        return self.select(attended), None

    def select(self, x: Float[Tensor, "N d"]) -> Float[Tensor, "M d"]:
        """See `Attention`."""
        return x if self._selected is None else x[self._selected]
