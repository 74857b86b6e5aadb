"""What is in a data set, in numbers."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from math import ceil

from clusterlora.data.duplicates import duplicate_groups
from clusterlora.data.leaks import find_leaks
from clusterlora.data.load import fitted, limited, read, split
from clusterlora.data.problems import Problems
from clusterlora.data.prompt_fit import PromptFit
from clusterlora.data.summary import DataSummary, Distribution
from clusterlora.data.twins import near_twins
from clusterlora.errors import BadData
from clusterlora.settings import DataSettings
from clusterlora.values import Dataset

_BINS = 16
_DECADES = 100
"""From this ratio of the largest to the smallest value, bins have equal ratios instead of equal widths."""
_MOST_NAMED = 5


def examine(settings: DataSettings, fit: PromptFit | None = None) -> DataSummary:
    """Return what is in the source: after splitting, or, when it can be read but not trained on, as it is and why not.

    Args:
        fit: counts how the dialogues fit a base model, too.

    Raises:
        BadData: every problem of the input itself.
    """
    reading = read(settings)
    problems = Problems()
    chosen = limited(reading, settings, problems)
    dataset = split(fitted(chosen, fit, settings, problems) if fit else chosen, settings, problems)
    counts = {"lose_turns": fit.n_losing_turns, "do_not_fit": fit.n_unfit} if fit else {}
    counts["beginnings"] = reading.n_beginnings
    try:
        problems.raise_any()
    except BadData as refusal:
        return replace(summarise(reading.dataset, refusal=str(refusal)), **counts)
    # Splitting leaves leaking dialogues out; what the input's own splits leak must be told all the same.
    return replace(summarise(dataset), leaks=len(find_leaks(reading.dataset.personas)), **counts)


def summarise(dataset: Dataset, *, refusal: str | None = None) -> DataSummary:
    """Return the counts of a data set, split or not."""
    dialogues = [dialogue for persona in dataset.personas for dialogue in persona.dialogues]
    splits = [dialogue.split for dialogue in dialogues]
    repeated = Counter({persona.id: sum(len(group) - 1 for group in duplicate_groups(persona.dialogues)) for persona in dataset.personas})
    responses = [len(turn.text) for dialogue in dialogues for turn in dialogue.turns if turn.role == "assistant"]
    return DataSummary(
        personas=len(dataset.personas),
        described=sum(persona.description is not None for persona in dataset.personas),
        dialogues=len(dialogues),
        examples=len(responses),
        train=splits.count("train"),
        val=splits.count("val"),
        test=splits.count("test"),
        dialogues_per_persona=_distribution(len(persona.dialogues) for persona in dataset.personas),
        dialogue_characters=_distribution(sum(len(turn.text) for turn in dialogue.turns) for dialogue in dialogues),
        response_characters=_distribution(responses),
        duplicates=repeated.total(),
        leaks=len(find_leaks(dataset.personas)),
        near_twins=len(near_twins(dataset.personas)),
        repetitive=tuple((persona_id, n) for persona_id, n in repeated.most_common(_MOST_NAMED) if n),
        refusal=refusal,
    )


def _distribution(values: Iterable[int]) -> Distribution:
    ordered = sorted(values) or [0]
    lowest, highest = ordered[0], ordered[-1]
    logarithmic = lowest > 0 and highest >= _DECADES * lowest
    edges = _edges(lowest, highest + 1, logarithmic=logarithmic)
    counts = Counter(bisect_right(edges, value) - 1 for value in ordered)
    bins = tuple(counts[number] for number in range(len(edges) - 1))
    p5, median, p95 = (ordered[round(share * (len(ordered) - 1))] for share in (0.05, 0.5, 0.95))
    return Distribution(p5, median, p95, highest, lowest, bins, edges, logarithmic)


def _edges(start: int, end: int, *, logarithmic: bool) -> tuple[float, ...]:
    """Return the edges of the bins of whole numbers from `start` to below `end`; each bin has at least one of them."""
    if not logarithmic:
        n_bins = min(_BINS, end - start)
        return tuple(start + number * (end - start) / n_bins for number in range(n_bins + 1))
    ratio = end / start
    return tuple(sorted({*(ceil(start * ratio ** (number / _BINS)) for number in range(_BINS)), end}))
