"""Pairs of answers put to a judge, in both orders, and what its preferences are worth."""

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock

from clusterlora.data.lines import json_records
from clusterlora.data.problems import Problems
from clusterlora.errors import BadData, counted
from clusterlora.evaluation.statistics import wilson_interval
from clusterlora.ports.judge import AnswerPair, Judge, Preference
from clusterlora.values import EvaluationRow, digest

_AT_ONCE = 8
"""Questions that a judge has at a time."""

_SWAPPED: Mapping[Preference, Preference] = {"first": "second", "second": "first"}
_WORTH: Mapping[Preference, float] = {"first": 1.0, "second": 0.0}
_TIE = 0.5
_ABSTAINS: frozenset[Preference] = frozenset({"abstain", "unusable"})
_HUMAN = ("prompt", "reference", "first", "second", "preferred")


class CachedJudge:
    """Asks a judge what was never asked before; its preferences are kept in a file by the content of the question.

    An unusable reply is not kept: a comparison that is made again asks anew.
    """

    def __init__(self, judge: Judge, file: Path) -> None:
        self._judge, self._file, self._lock = judge, file, Lock()
        self._known: dict[str, Preference] = {}
        self.n_asked = 0
        if file.is_file():
            for line in file.read_text(encoding="utf-8").splitlines():
                try:
                    kept = json.loads(line)
                except ValueError:
                    continue  # a line that was cut when the process died: it is asked again
                match kept:
                    case [str() as key, ("first" | "second" | "tie" | "abstain") as preference]:
                        self._known[key] = preference
                    case _:
                        continue  # damaged: it is asked again

    def prefer_all(self, pairs: Sequence[AnswerPair]) -> list[Preference]:
        """Return the preference of every pair, in order. Equal answers are a tie that nobody is asked about.

        Raises:
            ServiceDown: nobody replies; what the judge has answered is kept.
        """
        distinct = list(dict.fromkeys(pair for pair in pairs if pair.first != pair.second))
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            preferred = dict(zip(distinct, pool.map(self._prefer, distinct), strict=True))
        return [preferred.get(pair, "tie") for pair in pairs]

    def _prefer(self, pair: AnswerPair) -> Preference:
        key = digest([self._judge.identity, pair], length=32)
        if key in self._known:
            return self._known[key]
        preference = self._judge.prefer(pair)
        with self._lock:
            self.n_asked += 1
            if preference != "unusable":
                with self._file.open("a", encoding="utf-8") as file:
                    file.write(json.dumps([key, preference]) + "\n")
                self._known[key] = preference
        return preference


@dataclass(frozen=True, slots=True)
class JudgeQuality:
    """What a judge's preferences are worth: of `n_pairs`, asked in both orders, how many it judged alike.

    In `n_preferring` pairs it prefers one answer, in both orders or in one without preferring the other in the other; in `n_equal` it says
    twice that neither is better.
    In `n_undecided` pairs it abstained in at least one order; in the rest its orders disagree. `n_ties` and `n_unusable` count single
    replies. `agreement` is how many of `n_human` preferences of people are its own in both orders, None without any; `n_human_undecided`
    of them it judged otherwise in the other order, or abstained.
    """

    n_pairs: int
    n_consistent: int
    n_undecided: int
    n_ties: int
    n_unusable: int
    n_preferring: int
    n_equal: int
    n_human: int = 0
    n_human_undecided: int = 0
    agreement: int | None = None

    @property
    def tells(self) -> bool:
        """Whether it says something of at least half of the pairs, and not everywhere that neither answer is better.

        What it contradicts in the other order, and what it abstains from twice, scores as if the answers were equal. So does a tie: who
        says nothing else may not have read them.
        """
        return not self.n_pairs or (self.n_preferring > 0 and 2 * (self.n_preferring + self.n_equal) >= self.n_pairs)

    def sentence(self, identity: str) -> str:
        """Return it in words."""
        if not self.n_pairs:
            return f"The judge {identity} was asked nothing: every answer is unified's."
        n_flipped = self.n_pairs - self.n_consistent - self.n_undecided
        words = (
            f"The judge {identity} compared {counted(self.n_pairs, 'pair')} of different answers in both orders: "
            f"{_share(self.n_consistent, self.n_pairs)} alike, {n_flipped / self.n_pairs:.0%} otherwise in the other order, "
            f"{self.n_undecided / self.n_pairs:.0%} with an abstention. {self.n_ties / (2 * self.n_pairs):.0%} of what it said are ties. "
        )
        if self.n_unusable:
            words += f"{self.n_unusable} of its {2 * self.n_pairs} replies say no preference and count as abstentions. "
        if self.agreement is None:
            return words + "How far people agree with it is not known: judge.preferences names no file."
        return words + (
            f"It agrees with {_share(self.agreement, self.n_human)} of {counted(self.n_human, 'preference')} of people; "
            f"{self.n_human_undecided / self.n_human:.0%} it judges otherwise in the other order, or abstains."
        )


def _share(n: int, of: int) -> str:
    """Return a share in percent with its interval (Wilson)."""
    low, high = wilson_interval(n, of)
    return f"{n / of:.0%} ({100 * low:.0f}–{100 * high:.0f})"


def with_judge_scores(
    rows: Sequence[EvaluationRow], reference: str, judge: CachedJudge, human: Sequence[tuple[AnswerPair, Preference]]
) -> tuple[list[EvaluationRow], JudgeQuality]:
    """Return the rows with their score `judge`, and what the judge is worth.

    An answer that is preferred to the reference's of the same training seed scores 1, one that is not 0, a tie or an abstention one half;
    the score is the mean over both orders, so a preference for a position is a tie. The reference itself scores one half.

    Raises:
        BadData: the reference did not answer an item.
        ServiceDown: as `CachedJudge.prefer_all`.
    """
    of_reference = {(row.persona_id, row.item_id, row.seed): row for row in rows if row.method == reference}
    pairs: list[AnswerPair] = []
    for row in rows:
        other = of_reference.get((row.persona_id, row.item_id, row.seed)) or of_reference.get((row.persona_id, row.item_id, 0))
        if other is None:
            raise BadData(f"{reference} did not answer item {row.item_id!r} of {row.persona_id!r}, as the judge needs; evaluate it")
        pairs.append(AnswerPair(row.prompt, row.reference, row.text, other.text))
    preferences = _both_orders(pairs, judge)
    scored = [replace(row, scores={**row.scores, "judge": _score(*both)}) for row, both in zip(rows, preferences, strict=True)]
    asked = {pair: both for pair, both in zip(pairs, preferences, strict=True) if pair.first != pair.second}
    words = [word for both in asked.values() for word in both]
    quality = JudgeQuality(
        n_pairs=len(asked),
        n_consistent=sum(_verdict(one, two) is not None for one, two in asked.values()),
        n_undecided=sum(not _ABSTAINS.isdisjoint(both) for both in asked.values()),
        n_ties=words.count("tie"),
        n_unusable=words.count("unusable"),
        n_preferring=sum(_score(*both) != _TIE for both in asked.values()),
        n_equal=sum(both == ("tie", "tie") for both in asked.values()),
    )
    if not human:
        return scored, quality
    its = _both_orders([pair for pair, _ in human], judge)
    verdicts = [_verdict(one, two) for one, two in its]
    agreement = sum(verdict == preferred for (_, preferred), verdict in zip(human, verdicts, strict=True))
    return scored, replace(quality, n_human=len(human), n_human_undecided=verdicts.count(None), agreement=agreement)


def human_preferences(file: Path) -> list[tuple[AnswerPair, Preference]]:
    """Return what people prefer: lines of `{"prompt", "reference", "first", "second", "preferred": "first", "second" or "tie"}`.

    Raises:
        BadData: the file does not exist or has no lines; or every line that cannot be used, with its place.
    """
    if not file.is_file():
        raise BadData(f"judge.preferences = {str(file)!r}: no such file; give lines of {', '.join(_HUMAN)}, or leave it out")
    problems = Problems()
    preferences: list[tuple[AnswerPair, Preference]] = []
    for place, record in json_records(file, problems):
        if record is None:
            continue
        texts = [record.get(name) for name in _HUMAN[:-1]]
        preferred = record.get("preferred")
        if not all(isinstance(one, str) for one in texts) or preferred not in ("first", "second", "tie"):
            problems.add(place, "preference", f"has not all of {', '.join(_HUMAN)}", "write texts, and first, second or tie as preferred")
        elif record["first"] == record["second"]:
            problems.add(place, "preference", "first and second are the same answer", "leave the line out: nobody would be asked")
        else:
            preferences.append((AnswerPair(*map(str, texts)), preferred))
    problems.raise_any()
    return preferences


def _both_orders(pairs: Sequence[AnswerPair], judge: CachedJudge) -> list[tuple[Preference, Preference]]:
    words = judge.prefer_all([*pairs, *(pair.swapped for pair in pairs)])
    return list(zip(words[: len(pairs)], words[len(pairs) :], strict=True))


def _verdict(one: Preference, two: Preference) -> Preference | None:
    """Return what is preferred in both orders; None where they disagree or the judge abstains."""
    return one if one == _swapped(two) and one not in _ABSTAINS else None


def _swapped(preference: Preference) -> Preference:
    return _SWAPPED.get(preference, preference)


def _score(one: Preference, two: Preference) -> float:
    """Return the mean worth of the first answer over both orders."""
    return (_WORTH.get(one, _TIE) + _WORTH.get(_swapped(two), _TIE)) / 2
