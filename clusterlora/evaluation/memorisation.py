"""What an adapter has memorised of the dialogues that it was trained on: membership inference, verbatim copies, exposure of canaries.

Everything is held against what the adapter has never learnt, so that knowing a manner of talking does not count as knowing a text.
Sources: Yeom, Giacomelli, Fredrikson & Jha 2018 (membership by loss); Carlini, Chien, Nasr, Song, Terzis & Tramèr 2022 (calibrated by a
reference model; true positives at a low false-positive rate); Carlini et al. 2019 (exposure).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

from clusterlora.data.words import words
from clusterlora.errors import BadData
from clusterlora.evaluation.exposure import chance_of_rank, exposure, exposure_at_chance
from clusterlora.evaluation.statistics import Interval, wilson_interval

DRAWS = 1000
LOW_FALSE_POSITIVES = 0.01
"""The false-positive rate at which true positives are counted; with n < 100 held-out dialogues, 1 / n."""
LEVEL = 0.025
"""Of the test of the canaries: how often canaries that were never seen count as remembered, as of what has a 95 % interval."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    """How well the loss tells dialogues that an adapter was trained on from held-out ones of the same people."""

    n_people: int
    n_trained_on: int
    n_held_out: int
    auc: float
    auc_low: float
    auc_high: float
    false_positive_rate: float
    true_positive_rate: float
    true_positive_low: float
    true_positive_high: float

    @property
    def is_found(self) -> bool:
        """Whether dialogues are recognised more often than chance would."""
        return self.auc_low > 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Copies:
    """How often answers repeat what the adapter was trained on, as shares of the answers, and the longest repetition in words.

    `prompts` test: answers to test prompts that repeat a train answer; `never_learnt` is what they repeat of as many words of the same
    people's held-out answers, `learnt` of as many words of train answers, and `others` of as many of other people's, None where there are
    none. `prompts` train: answers to train prompts that repeat the very answer trained on; `never_learnt` is the same of test prompts.
    The interval is that of `learnt` minus `never_learnt`.
    """

    prompts: Literal["train", "test"]
    n_answers: int
    rate: float
    longest: int
    learnt: float
    never_learnt: float
    others: float | None
    low: float
    high: float

    @property
    def is_found(self) -> bool:
        """Whether more is repeated of what was learnt than of what was not."""
        return self.low > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Exposure:
    """How much likelier canaries are than others drawn like them, in bits; `p` is the probability of such ranks if none was ever seen."""

    n_canaries: int
    n_others: int
    mean: float
    largest: float
    at_chance: float
    p: float

    @property
    def most(self) -> float:
        """The largest exposure that so many others allow."""
        return float(np.log2(self.n_others + 1))

    @property
    def is_found(self) -> bool:
        """Whether the canaries are remembered."""
        return self.p < LEVEL


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterMemory:
    """What was measured of one adapter, or of the champion as it answers; parts that could not be measured are None or missing."""

    name: str
    membership: Membership | None
    copies: tuple[Copies, ...] = ()
    exposure: Exposure | None = None

    @property
    def found(self) -> tuple[str, ...]:
        """What is more than chance, in words."""
        kinds = (
            ("dialogues are recognised by their loss", self.membership is not None and self.membership.is_found),
            ("train answers are repeated", any(one.is_found for one in self.copies)),
            ("canaries are remembered", self.exposure is not None and self.exposure.is_found),
        )
        return tuple(what for what, is_found in kinds if is_found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Memorisation:
    """What a study's shared adapters and its champion have memorised. `n_words` is from how many words on a repetition counts.

    `canaries_in` is the study whose canaries were measured, None where none was trained with any.
    """

    adapters: tuple[AdapterMemory, ...]
    n_words: int
    canaries_in: str | None = None


def membership(
    people: Int[np.ndarray, " dialogue"], scores: Float[np.ndarray, " dialogue"], trained_on: Int[np.ndarray, " dialogue"]
) -> Membership | None:
    """Return how well scores tell what was trained on; None where nobody has both kinds of dialogues.

    Intervals: two-level bootstrap over people and their dialogues; Wilson's for the true positives.

    Args:
        people: whose each dialogue is, as any integers.
        scores: the base model's loss minus the adapter's; the larger, the more the adapter has learnt of it.
        trained_on: 1 where the adapter was trained on it, else 0.
    """
    both = [p for p in np.unique(people) if len(np.unique(trained_on[people == p])) == 2]
    kept = np.isin(people, both)
    people, scores, trained_on = people[kept], scores[kept], trained_on[kept]
    if not len(scores):
        return None
    held_out = np.sort(scores[trained_on == 0])
    n_held_out, n_trained_on = len(held_out), int(trained_on.sum())
    rate = max(LOW_FALSE_POSITIVES, 1 / n_held_out)
    threshold = held_out[n_held_out - int(rate * n_held_out + 1e-9)]
    n_found = int((scores[trained_on == 1] > threshold).sum())
    low, high = _interval(people, lambda rows: _auc(scores[rows], trained_on[rows]))
    found = wilson_interval(n_found, n_trained_on)
    return Membership(
        n_people=len(both),
        n_trained_on=n_trained_on,
        n_held_out=n_held_out,
        auc=_auc(scores, trained_on),
        auc_low=low,
        auc_high=high,
        false_positive_rate=rate,
        true_positive_rate=n_found / n_trained_on,
        true_positive_low=found.low,
        true_positive_high=found.high,
    )


def _auc(scores: Float[np.ndarray, " row"], trained_on: Int[np.ndarray, " row"]) -> float:
    """Return the probability that a dialogue trained on scores higher than a held-out one, ties counted half (Mann & Whitney 1947)."""
    n, n_out = int(trained_on.sum()), int((1 - trained_on).sum())
    if n == 0 or n_out == 0:
        return 0.5
    return float((stats.rankdata(scores)[trained_on == 1].sum() - n * (n + 1) / 2) / (n * n_out))


def _interval(people: Int[np.ndarray, " row"], statistic: Callable[[np.ndarray], float]) -> Interval:
    """Return the central 95 % of a statistic of rows, over draws of people and, for each, of as many of their rows."""
    rng = np.random.default_rng(0)
    rows = [np.flatnonzero(people == p) for p in np.unique(people)]
    drawn: list[float] = []
    for _ in range(DRAWS):
        chosen = rng.integers(len(rows), size=len(rows))
        drawn.append(statistic(np.concatenate([rng.choice(rows[i], size=len(rows[i])) for i in chosen])))
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Interval(float(low), float(high))


class Text:
    """Texts in which verbatim spans are looked for, word by word, without case and punctuation."""

    def __init__(self, texts: Iterable[tuple[str, str]]) -> None:
        """Take texts, each under a key by which it can be left out, such as its dialogue."""
        self.texts = tuple((key, _words(text)) for key, text in texts)
        self.n_words = sum(len(one) for _, one in self.texts)

    @cached_property
    def _places(self) -> Mapping[str, list[tuple[int, int]]]:
        places: dict[str, list[tuple[int, int]]] = {}
        for number, (_, one) in enumerate(self.texts):
            for position, word in enumerate(one):
                places.setdefault(word, []).append((number, position))
        return places

    def longest(self, text: str, *, without: str | None = None) -> int:
        """Return the words of the longest span that the text shares with one of these, those under the key `without` left out."""
        best, ending = 0, dict[tuple[int, int], int]()
        for word in _words(text):
            # Of every place where a shared span may end: how long it is.
            ending = {(n, i): ending.get((n, i - 1), 0) + 1 for n, i in self._places.get(word, ()) if self.texts[n][0] != without}
            best = max(best, *ending.values()) if ending else best
        return best

    def some(self, n_words: int, rng: np.random.Generator) -> "Text":
        """Return texts drawn at random until they have so many words."""
        drawn: list[tuple[str, str]] = []
        for number in rng.permutation(len(self.texts)).tolist():
            if n_words <= 0:
                break
            key, one = self.texts[number]
            drawn.append((key, " ".join(one[:n_words])))
            n_words -= len(one)
        return Text(drawn)


@lru_cache(maxsize=100_000)
def _words(text: str) -> tuple[str, ...]:
    return tuple(words(text))


@dataclass(frozen=True, slots=True)
class Said:
    """An answer that was generated, whose it is, the key of the dialogue that was asked, and that one's own answer."""

    persona_id: str
    key: str
    text: str
    own: str


@dataclass(frozen=True, slots=True)
class Group:
    """Answers of people whom the same adapters answer, with what these have learnt and what they have not.

    `test` answers test prompts, `train` train prompts. `held_out` are answers of the same people; `others` other people's, None where
    the adapters have learnt from everybody.
    """

    test: tuple[Said, ...]
    train: tuple[Said, ...]
    learnt: Text
    held_out: Text
    others: Text | None


def copies(groups: Sequence[Group], *, n_words: int) -> tuple[Copies, ...]:
    """Return how often answers to test and to train prompts repeat at least `n_words` words; nothing of prompts that were not asked."""
    rng = np.random.default_rng(0)
    of_test = _copies_of_learnt([group for group in groups if group.test], n_words, rng)
    of_train = _copies_of_own([group for group in groups if group.train], n_words, rng)
    return tuple(one for one in (of_test, of_train) if one is not None)


def _copies_of_learnt(groups: Sequence[Group], n_words: int, rng: np.random.Generator) -> Copies | None:
    said = [one for group in groups for one in group.test]
    if not said:
        return None
    longest: list[int] = []
    found: list[list[bool]] = [[], [], []]
    for group in groups:
        texts = (group.learnt, group.held_out, group.others)
        amount = min(text.n_words for text in texts if text is not None)
        longest += [group.learnt.longest(one.text, without=one.key) for one in group.test]
        for shares, text in zip(found, texts, strict=True):
            if text is not None:
                part = text.some(amount, rng)
                shares += [part.longest(one.text, without=one.key) >= n_words for one in group.test]
    learnt, never_learnt, others = (np.array(shares, dtype=np.float64) for shares in found)
    difference = learnt - never_learnt
    low, high = _interval(_numbers(said), lambda rows: float(difference[rows].mean()))
    return Copies(
        prompts="test",
        n_answers=len(said),
        rate=float((np.array(longest) >= n_words).mean()),
        longest=max(longest),
        learnt=float(learnt.mean()),
        never_learnt=float(never_learnt.mean()),
        others=float(others.mean()) if len(others) else None,
        low=low,
        high=high,
    )


def _copies_of_own(groups: Sequence[Group], n_words: int, rng: np.random.Generator) -> Copies | None:
    """Return how often the answer that was trained on is repeated; `never_learnt` are test answers of the same people."""
    train, test = ([one for group in groups for one in getattr(group, which)] for which in ("train", "test"))
    if not train or not test:
        return None
    spans = np.array([Text([("", one.own)]).longest(one.text) for one in (*train, *test)])
    is_train, found = np.arange(len(spans)) < len(train), spans >= n_words
    others = [
        group.others.some(len(_words(one.own)), rng).longest(one.text) >= n_words
        for group in groups
        if group.others is not None
        for one in group.train
    ]

    def difference(rows: np.ndarray) -> float:
        of_train, of_test = found[rows][is_train[rows]], found[rows][~is_train[rows]]
        return float(of_train.mean() - of_test.mean()) if len(of_train) and len(of_test) else 0.0

    low, high = _interval(_numbers((*train, *test)), difference)
    return Copies(
        prompts="train",
        n_answers=len(train),
        rate=float(found[is_train].mean()),
        longest=int(spans[is_train].max()),
        learnt=float(found[is_train].mean()),
        never_learnt=float(found[~is_train].mean()),
        others=float(np.mean(others)) if others else None,
        low=low,
        high=high,
    )


def _numbers(said: Sequence[Said]) -> Int[np.ndarray, " answer"]:
    return np.unique([one.persona_id for one in said], return_inverse=True)[1]


def exposures(canaries: Sequence[tuple[float, Float[np.ndarray, " candidate"]]]) -> Exposure:
    """Return what the losses of canaries, each with those of others drawn like it, say: Fisher's method over their ranks.

    Raises:
        BadData: there are none, or a loss is no number.
    """
    if not canaries:
        raise BadData("there are no canaries to measure; plant some: clusterlora study privacy NAME --canaries 10")
    bits = [exposure(loss, others) for loss, others in canaries]
    # Fisher 1925: minus twice the sum of the logarithms is chi-squared, with two degrees of freedom for each.
    statistic = -2 * sum(np.log(chance_of_rank(loss, others)) for loss, others in canaries)
    n_others = min(len(others) for _, others in canaries)
    return Exposure(
        n_canaries=len(canaries),
        n_others=n_others,
        mean=float(np.mean(bits)),
        largest=max(bits),
        at_chance=exposure_at_chance(n_others),
        p=float(stats.chi2.sf(statistic, 2 * len(canaries))),
    )
