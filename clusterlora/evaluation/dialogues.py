"""Items grouped by their dialogue: the turns of one depend on each other, so that whole dialogues are what counts as independent."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int


def dialogue_of(item_id: str) -> str:
    """Return the id of an item's dialogue: the item's without its turn, as `data.prompts.items` numbers them.

    An id without a turn is a dialogue of its own.
    """
    return item_id.rpartition("#")[0] or item_id


def dialogue_numbers(item_ids: Sequence[str]) -> Int[np.ndarray, " item"]:
    """Return the dialogue of each of a persona's items, numbered from 0 in the order of the items."""
    dialogues = [dialogue_of(item_id) for item_id in item_ids]
    numbers = {dialogue: number for number, dialogue in enumerate(dict.fromkeys(dialogues))}
    return np.array([numbers[dialogue] for dialogue in dialogues], dtype=np.int64)


def dialogue_means(values: Float[np.ndarray, "item *column"], dialogue: Int[np.ndarray, " item"]) -> Float[np.ndarray, "dialogue *column"]:
    """Return the mean of every dialogue's items.

    Args:
        dialogue: as `dialogue_numbers` returns them.
    """
    n_items = np.bincount(dialogue)
    sums = np.zeros((len(n_items), *values.shape[1:]))
    np.add.at(sums, dialogue, values)
    return sums / n_items.reshape(-1, *(1 for _ in values.shape[1:]))
