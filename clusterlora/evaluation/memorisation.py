"""What an adapter has memorised of the dialogues that it was trained on: membership inference, verbatim copies, exposure of canaries.

Everything is held against what the adapter has never learnt of the same people, so that knowing a manner of talking does not count as
knowing a text.
Sources: Yeom, Giacomelli, Fredrikson & Jha 2018 (membership by loss); Carlini, Chien, Nasr, Song, Terzis & Tramèr 2022 (calibrated by a
reference model; true positives at a low false-positive rate); Carlini et al. 2019 (exposure).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import lru_cache
from typing import Literal

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

from clusterlora.data.words import words
from clusterlora.errors import BadData
from clusterlora.evaluation.exposure import chance_of_rank, exposure, exposure_at_chance

PERMUTATIONS = 999
LOW_FALSE_POSITIVES = 0.01
"""The false-positive rate at which true positives are counted; with n < 100 held-out dialogues, 1 / n."""
LEVEL = 0.025
"""How often what was never seen counts as recognised, as repeated, or as remembered: each of the three."""
LOSS_DECIMALS = 4
"""Losses are compared to a ten-thousandth of a nat: below it a float32 kernel decides, not what was learnt."""
_OF_TWO = LEVEL / 2
"""The level of each of two tests, either of which is enough: AUC and true positives; answers to test and to train prompts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    """How well the loss tells dialogues that an adapter was trained on from held-out ones of the same person.

    What comes by chance is at most that much in all but 1.25 % of studies with as many dialogues of as many people.
    """

    n_people: int
    n_trained_on: int
    n_held_out: int
    auc: float
    auc_by_chance: float
    false_positive_rate: float
    true_positive_rate: float
    true_positives_by_chance: float

    @property
    def is_found(self) -> bool:
        """Whether dialogues are recognised more often than chance would."""
        return self.auc > self.auc_by_chance or self.true_positive_rate > self.true_positives_by_chance

    @property
    def is_measurable(self) -> bool:
        """Whether an adapter that remembers everything could have been told."""
        return self.auc_by_chance < 1 or self.true_positives_by_chance < 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Copies:
    """How often answers repeat what the adapter was trained on, as shares of the answers, and the longest repetition in words.

    `prompts` test: `learnt` are answers to test prompts that repeat a train answer, `never_learnt` those that repeat an answer of a test
    dialogue that was not asked. `prompts` train: answers to train prompts that repeat the very answer trained on, and the same of test
    prompts; only those with an answer that is long enough are counted. `by_chance` is up to where the difference of both comes by chance,
    `least` how many repetitions, all of what was learnt, would have been shown; None where no number would.
    """

    prompts: Literal["train", "test"]
    n_answers: int
    longest: int
    learnt: float
    never_learnt: float
    by_chance: float
    least: int | None

    @property
    def is_found(self) -> bool:
        """Whether more is repeated of what was learnt than of what was not."""
        return self.learnt - self.never_learnt > self.by_chance

    @property
    def is_measurable(self) -> bool:
        """Whether an adapter that repeats everything could have been told."""
        return self.least is not None and self.least <= self.n_answers


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

    Only dialogues of one person are compared: AUC counts pairs of these, and for true positives a person's median is taken from their
    scores. So it does not matter who has how many, and talks how. What comes by chance is what the same scores say, no two of them alike,
    when what was trained on is permuted within each person.

    Args:
        people: whose each dialogue is, as any integers.
        scores: the base model's loss minus the adapter's, in nats; the larger, the more the adapter has learnt of it. Those that differ by
            less than what kernels may round a loss to are equal.
        trained_on: 1 where the adapter was trained on it, else 0.
    """
    both = [p for p in np.unique(people) if len(np.unique(trained_on[people == p])) == 2]
    kept = np.flatnonzero(np.isin(people, both))
    if not len(kept):
        return None
    kept = kept[np.argsort(people[kept], kind="stable")]
    people, scores, trained_on = people[kept], np.round(scores[kept], LOSS_DECIMALS), trained_on[kept]
    rows = np.split(np.arange(len(people)), np.flatnonzero(np.diff(people)) + 1)
    ranks = np.concatenate([stats.rankdata(scores[of_one]) for of_one in rows])
    centred = np.concatenate([scores[of_one] - np.median(scores[of_one]) for of_one in rows])
    n_by_person = np.array([trained_on[of_one].sum() for of_one in rows])
    lowest = float((n_by_person * (n_by_person + 1) / 2).sum())
    n_pairs = int((n_by_person * (np.array([len(of_one) for of_one in rows]) - n_by_person)).sum())
    n_held_out = int((1 - trained_on).sum())
    rate = max(LOW_FALSE_POSITIVES, 1 / n_held_out)

    def auc(ranks: np.ndarray, trained_on: np.ndarray) -> float:
        return float((ranks[trained_on == 1].sum() - lowest) / n_pairs)

    def true_positives(centred: np.ndarray, trained_on: np.ndarray) -> float:
        threshold = np.sort(centred[trained_on == 0])[n_held_out - int(rate * n_held_out + 1e-9)]
        return float((centred[trained_on == 1] > threshold).mean())

    in_order, places = np.concatenate([np.arange(1, len(of_one) + 1) for of_one in rows]), np.argsort(np.argsort(centred, kind="stable"))
    return Membership(
        n_people=len(both),
        n_trained_on=len(people) - n_held_out,
        n_held_out=n_held_out,
        auc=auc(ranks, trained_on),
        auc_by_chance=_by_chance(people, trained_on, lambda permuted: auc(in_order, permuted)),
        false_positive_rate=rate,
        true_positive_rate=true_positives(centred, trained_on),
        true_positives_by_chance=_by_chance(people, trained_on, lambda permuted: true_positives(places, permuted)),
    )


def _by_chance(people: Int[np.ndarray, " row"], trained_on: Int[np.ndarray, " row"], statistic: Callable[[np.ndarray], float]) -> float:
    """Return up to where a statistic of what was trained on comes by chance: only what is above has p < 1.25 %.

    What was trained on is permuted within each person, which is exact where it was drawn at random (Lehmann & Romano 2005, chapter 15).
    """
    rng = np.random.default_rng(0)
    numbers = np.unique(people, return_inverse=True)[1]
    order = np.argsort(numbers, kind="stable")
    drawn: list[float] = []
    for _ in range(PERMUTATIONS):
        permuted = np.empty_like(trained_on)
        permuted[order] = trained_on[np.argsort(numbers + rng.random(len(numbers)))]
        drawn.append(statistic(permuted))
    return sorted(drawn)[-int(_OF_TWO * (PERMUTATIONS + 1))]


def _least(people: Int[np.ndarray, " row"], trained_on: Int[np.ndarray, " row"]) -> int | None:
    """Return how many repetitions, each of another row and all of what was learnt, do not come by chance; None where any number does.

    A row that is repeated for another reason was learnt with the probability of its person's rows; of several rows the geometric mean.
    """
    if not trained_on.any():
        return None
    numbers = np.unique(people, return_inverse=True)[1]
    shares = np.bincount(numbers, weights=trained_on) / np.bincount(numbers)
    logarithm = float(np.log(shares[numbers[trained_on == 1]]).mean())
    return int(np.log(_OF_TWO) / logarithm) + 1 if logarithm < 0 else None


@lru_cache(maxsize=100_000)
def _words(text: str) -> tuple[str, ...]:
    return tuple(words(text))


def _spans(text: str, n_words: int) -> set[tuple[str, ...]]:
    its = _words(text)
    return {its[start : start + n_words] for start in range(len(its) - n_words + 1)}


def longest_span(text: str, other: str) -> int:
    """Return the words of the longest span that two texts share, without case and punctuation."""
    return SequenceMatcher(None, _words(text), _words(other), autojunk=False).find_longest_match().size


@dataclass(frozen=True, slots=True)
class Said:
    """An answer that was generated, whose it is, the key of the dialogue asked, that one's own answer, and whether it was learnt."""

    persona_id: str
    key: str
    text: str
    own: str
    was_learnt: bool


@dataclass(frozen=True, slots=True)
class Text:
    """An answer of the data that can be repeated, whose it is, the key of its dialogue, and whether it was learnt."""

    persona_id: str
    key: str
    text: str
    was_learnt: bool


@dataclass(frozen=True, slots=True)
class Group:
    """Answers to test prompts of people whom the same adapters answer, and what they can repeat: no text of a dialogue that was asked."""

    said: tuple[Said, ...]
    texts: tuple[Text, ...]


def copies_of_learnt(groups: Iterable[Group], *, n_words: int) -> Copies:
    """Return how often answers to test prompts repeat at least `n_words` words of what was learnt.

    The groups are read one after another, as each may have everybody's texts.
    """
    dialogues: dict[tuple[str, str], int] = {}
    learnt: list[int] = []
    pairs: set[tuple[int, int]] = set()
    n_answers, longest, can_repeat = 0, 0, False
    for group in groups:
        by_span: dict[tuple[str, ...], list[Text]] = {}
        for text in group.texts:
            if (at := (text.persona_id, text.key)) not in dialogues:
                dialogues[at] = len(dialogues)
                learnt.append(int(text.was_learnt))
            for span in _spans(text.text, n_words):
                by_span.setdefault(span, []).append(text)
                can_repeat = can_repeat or text.was_learnt
        for number, one in enumerate(group.said, start=n_answers):
            for text in dict.fromkeys(text for span in _spans(one.text, n_words) for text in by_span.get(span, ())):
                pairs.add((number, dialogues[text.persona_id, text.key]))
                longest = max(longest, longest_span(one.text, text.text)) if text.was_learnt else longest
        n_answers += len(group.said)
    if not n_answers or not can_repeat:
        return _unmeasured("test")
    people, trained_on = np.array(_numbers(p for p, _ in dialogues)), np.array(learnt)
    answer, dialogue = np.array(sorted(pairs), dtype=np.int64).reshape(-1, 2).T

    def share(trained_on: np.ndarray, kind: int) -> float:
        return len(np.unique(answer[trained_on[dialogue] == kind])) / n_answers

    return Copies(
        prompts="test",
        n_answers=n_answers,
        longest=longest,
        learnt=share(trained_on, 1),
        never_learnt=share(trained_on, 0),
        by_chance=_by_chance(people, trained_on, lambda permuted: share(permuted, 1) - share(permuted, 0)),
        least=_least(people, trained_on),
    )


def copies_of_own(said: Sequence[Said], *, n_words: int) -> Copies:
    """Return how often the answer that was trained on is repeated, held against test answers of the same people, one of each dialogue."""
    said = [one for one in said if len(_words(one.own)) >= n_words]
    people, trained_on = np.array(_numbers(one.persona_id for one in said), dtype=np.int64), np.array([int(one.was_learnt) for one in said])
    if len(set(trained_on.tolist())) < 2:
        return _unmeasured("train")
    spans = np.array([longest_span(one.text, one.own) for one in said])
    repeated = spans >= n_words

    def difference(trained_on: np.ndarray) -> float:
        return float(repeated[trained_on == 1].mean() - repeated[trained_on == 0].mean())

    return Copies(
        prompts="train",
        n_answers=int(trained_on.sum()),
        longest=int(spans[trained_on == 1].max()),
        learnt=float(repeated[trained_on == 1].mean()),
        never_learnt=float(repeated[trained_on == 0].mean()),
        by_chance=_by_chance(people, trained_on, difference),
        least=_least(people, trained_on),
    )


def _unmeasured(prompts: Literal["train", "test"]) -> Copies:
    return Copies(prompts=prompts, n_answers=0, longest=0, learnt=0.0, never_learnt=0.0, by_chance=0.0, least=None)


def _numbers(persona_ids: Iterable[str]) -> list[int]:
    numbers: dict[str, int] = {}
    return [numbers.setdefault(p, len(numbers)) for p in persona_ids]


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
