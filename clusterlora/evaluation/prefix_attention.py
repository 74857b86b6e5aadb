"""Attention of packed rows some of which carry on where another row ends.

legend   N tokens of all rows, n rows of a run, t token of a row, p token of a beginning, H query heads, G key-value heads,
         e width of a head
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from clusterlora.evaluation.prefix_sharing import Reading
from clusterlora.models.decoder import Decoder
from clusterlora.models.packing import Run


@dataclass(frozen=True, slots=True)
class _Before:
    """What the rows of a run carry on: where it is among all tokens, and what each of their tokens sees of it and of its own row."""

    token: Int[Tensor, "n p"]
    sees: Bool[Tensor, "n 1 t p+t"]


@dataclass(frozen=True, slots=True)
class Attention:
    """Neighbouring rows whose attention is computed at once; `before` when they carry on other rows."""

    run: Run
    before: _Before | None

    def attend(
        self, decoder: Decoder, queries: Float[Tensor, "N H e"], keys: Float[Tensor, "N G e"], values: Float[Tensor, "N G e"]
    ) -> Float[Tensor, "n t H*e"]:
        """Return what the tokens of these rows find."""
        q, k, v = (self.run.of(part) for part in (queries, keys, values))
        if self.before is None:
            return decoder.attend(q, k, v)
        k, v = (torch.cat([of_all[self.before.token], own], dim=1) for of_all, own in ((keys, k), (values, v)))
        return decoder.attend(q, k, v, self.before.sees)


def attention_of(
    runs: Sequence[Run], rows: Sequence[Reading], start_of: Mapping[tuple[int, tuple[int, ...]], int], device: torch.device
) -> list[Attention]:
    """Return the attention of every run of a batch.

    Args:
        start_of: the first token of the row of every beginning.
    """
    found = []
    for run in runs:
        row, token = run.rows.start, run.tokens.start
        for carries_on, some in groupby(rows[run.rows], key=lambda reading: reading.begin > 0):
            alike = list(some)
            n_tokens = len(alike) * run.length
            part = Run(slice(row, row + len(alike)), slice(token, token + n_tokens), run.length)
            found.append(Attention(part, _before(alike, run.length, start_of, device) if carries_on else None))
            row, token = row + len(alike), token + n_tokens
    return found


def _before(rows: Sequence[Reading], length: int, start_of: Mapping[tuple[int, tuple[int, ...]], int], device: torch.device) -> _Before:
    begin = torch.tensor([reading.begin for reading in rows])[:, None]
    start = torch.tensor([start_of[reading.beginning] for reading in rows])[:, None]
    place = torch.arange(int(begin.max()))
    # A shorter beginning is padded with its last token, which is not seen twice.
    token = start + torch.minimum(place, begin - 1)
    of_beginning = (place < begin)[:, None, None].expand(-1, 1, length, -1)
    of_row = torch.ones(length, length, dtype=torch.bool).tril().expand(len(rows), 1, -1, -1)
    return _Before(token.to(device), torch.cat([of_beginning, of_row], dim=-1).to(device))
