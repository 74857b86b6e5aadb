"""Rows of different lengths, as they come from the tokeniser: the tokens of one after those of another, without padding.

legend   b row, N tokens of all rows, n rows that are selected, t token of a row

Rows stay so from the tokeniser to the backend, which lays them out as its kernels need them: packed (`engine.packing`) or, for a
transformers model, as a rectangle.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from clusterlora.chat.encoder import TokenSequence


@dataclass(frozen=True, slots=True)
class RaggedRows:
    """The tokens of all rows on the CPU, and how many each row has."""

    ids: Int[Tensor, " N"]
    predicts: Bool[Tensor, " N"]
    """Whether the loss reads a token's prediction: in training, where the next token of the row is a response token."""
    lengths: Int[Tensor, " b"]

    @classmethod
    def of(cls, sequences: Sequence[TokenSequence]) -> "RaggedRows":
        """Return one row per token sequence."""
        ids = [token for sequence in sequences for token in sequence.ids]
        predicts = [is_response for sequence in sequences for is_response in (*sequence.is_response[1:], False)]
        return cls(torch.tensor(ids), torch.tensor(predicts), torch.tensor([len(sequence.ids) for sequence in sequences]))

    @classmethod
    def with_predictions_in(cls, rows: Sequence[Sequence[int]], ranges: Sequence[Iterable[range]]) -> "RaggedRows":
        """Return rows of token ids whose predicting tokens are those in each row's ranges."""
        predicts = [torch.zeros(len(row), dtype=torch.bool) for row in rows]
        for of_row, in_row in zip(predicts, ranges, strict=True):
            for positions in in_row:
                of_row[positions.start : positions.stop] = True
        ids = [token for row in rows for token in row]
        return cls(torch.tensor(ids), torch.cat(predicts), torch.tensor([len(row) for row in rows]))

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.lengths)

    @property
    def starts(self) -> Int[Tensor, " b"]:
        """Index of each row's first token."""
        return self.lengths.cumsum(0) - self.lengths

    @property
    def row(self) -> Int[Tensor, " N"]:
        """The row of each token."""
        return torch.repeat_interleave(self.lengths, output_size=len(self.ids))

    @property
    def targets(self) -> Int[Tensor, " M"]:
        """The token after each of the M predicting ones; after the last token of a row, where nothing is to be predicted, any."""
        return self.ids.roll(-1)[self.predicts]

    def select(self, rows: Int[Tensor, " n"]) -> "RaggedRows":
        """Return these rows in this order; a row may occur several times."""
        lengths = self.lengths[rows]
        first = torch.repeat_interleave(self.starts[rows] - (lengths.cumsum(0) - lengths), lengths)
        token = first + torch.arange(len(first))
        return RaggedRows(self.ids[token], self.predicts[token], lengths)

    def padded(self, *, pad_id: int, multiple: int = 1) -> tuple[Int[Tensor, "b t"], Bool[Tensor, "b t"]]:
        """Return the rows as a rectangle, padded on the right: ids, and which tokens predict.

        Rows are as long as the longest, rounded up to a multiple of `multiple`: kernels are chosen per shape, so few shapes are better.
        """
        longest = multiple * math.ceil(int(self.lengths.max()) / multiple)
        is_real = torch.arange(longest) < self.lengths[:, None]
        ids = torch.full(is_real.shape, pad_id, dtype=torch.long)
        predicts = torch.zeros_like(is_real)
        ids[is_real], predicts[is_real] = self.ids, self.predicts
        return ids, predicts
