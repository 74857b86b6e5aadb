"""What studies claim in which nothing is personal: the rate at which the whole procedure, from clusters to verdict, is wrong."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from clusterlora.comparison.roles import can_win, deciding_control
from clusterlora.data.permutation import Remainder
from clusterlora.errors import BadData, counted
from clusterlora.evaluation.markdown import markdown_table
from clusterlora.evaluation.statistics import wilson_interval
from clusterlora.metadata import ComparisonSummary
from clusterlora.methods import METHODS, controls

LEVEL = 0.05
"""The rate that the tests allow: with one champion per study, one claim in twenty."""


@dataclass(frozen=True, slots=True)
class NullRate:
    """Of studies with permuted labels: how many claim that people gain because of who they are, and what else they say.

    `names` and `summaries` are in order, as is what their exchange has left of who said what, where that is known. A study that beats the
    reference without that claim is not wrong: groups that train on less differ from one adapter for all whoever is in them.
    """

    names: tuple[str, ...]
    summaries: tuple[ComparisonSummary, ...]
    remainders: tuple[Remainder | None, ...] = ()

    @property
    def n_claims(self) -> int:
        """Studies that claim personalisation."""
        return sum(summary.claims_personalisation for summary in self.summaries)

    @property
    def sentence(self) -> str:
        """The rate with its 95 % interval, and whether it is more than the tests allow."""
        n = len(self.summaries)
        beating = sum(map(_shows_a_gain, self.summaries))
        passed = sum(not summary.gate_refused for summary in self.summaries)
        low, high = wilson_interval(self.n_claims, n)
        verdict = "more than" if low > LEVEL else "not shown to be more than"
        return (
            f"Of {counted(n, 'study').replace('studys', 'studies')} with permuted labels, in which {self._personal} is personal, "
            f"{self.n_claims} {'claims' if self.n_claims == 1 else 'claim'} personalisation ({self.n_claims / n:.1%}, 95 % interval "
            f"{low:.1%} to {high:.1%}): {verdict} the {LEVEL:.0%} that the tests allow. {beating} {'shows' if beating == 1 else 'show'} a "
            f"method to beat unified, and in {passed} no gate refused." + self._untested
        )

    @property
    def _untested(self) -> str:
        """What could not be claimed for want of a control, in a sentence with a space before it; empty where nothing lacks one."""
        methods = [[score.method for score in summary.scores] for summary in self.summaries]
        if any(methods) and not any(map(can_claim, methods)):
            return " None of them could claim it: no method was compared with the control that tells why it gains."
        mute = sum(_shows_a_gain(summary) and not _tests_cause(summary) for summary in self.summaries)
        return (
            f" Of those that beat unified, {mute} could not claim it: what does was not compared with a control that tells why it gains."
            if mute
            else ""
        )

    @property
    def _personal(self) -> str:
        return "something still" if any(left is not None and left.is_much for left in self.remainders) else "nothing"

    @property
    def records(self) -> list[dict[str, str | bool | None]]:
        """One record per study."""
        return [
            {
                "study": name,
                "claims_personalisation": summary.claims_personalisation,
                "beats_unified": _shows_a_gain(summary),
                "gate_refused": summary.gate_refused,
                "champion": summary.champion,
                "sentence": summary.sentence,
            }
            for name, summary in zip(self.names, self.summaries, strict=True)
        ]

    def markdown(self) -> str:
        """Return the sentence, a table of the studies, and what is left of who said what."""
        yes = {True: "yes", False: "no"}
        rows = [
            (
                str(r["study"]),
                yes[bool(r["claims_personalisation"])],
                yes[bool(r["beats_unified"])],
                yes[bool(r["gate_refused"])],
                str(r["champion"] or "-"),
            )
            for r in self.records
        ]
        header = ("study", "claims personalisation", "beats unified", "gate refused", "champion")
        known = [(left, name) for name, left in zip(self.names, self.remainders, strict=False) if left is not None]
        most = max(known, key=lambda one: one[0].share - one[0].by_chance, default=None)
        note = f"\nThe labels are least permuted in {most[1]}: {most[0].sentence}.\n" if most else ""
        return f"**{self.sentence}**\n\n{markdown_table(header, rows, right=(False,) * len(header))}{note}"


def _shows_a_gain(summary: ComparisonSummary) -> bool:
    """Return whether a method that could be champion is shown to beat the reference, also where something else keeps it from being one."""
    return any(can_win(score.method) and score.outcome == "better" for score in summary.scores)


def _tests_cause(summary: ComparisonSummary) -> bool:
    """Return whether the method that beats the reference, by the verdict, was compared with the control that tells why it gains."""
    winners = [score.method for score in summary.scores if can_win(score.method) and score.outcome == "better"]
    winner = summary.champion if summary.champion in winners else winners[0]
    return summary.score(deciding_control(winner) or "") is not None


def can_claim(methods: Collection[str]) -> bool:
    """Return whether a study of these methods can claim personalisation: one of them has the control beside it that tells why it gains."""
    return any(deciding_control(method) in methods for method in methods)


def to_claim(methods: Collection[str]) -> str:
    """Return what a study of these methods, which cannot claim personalisation, is to compare so that it can."""
    if can_claim((*methods, *controls())):
        return "add --controls"
    tested = ((method, deciding_control(method)) for method in METHODS)
    return f"in methods, add {' or '.join(f'{method} and {control}' for method, control in tested if control)}"


def null_rate(studies: Sequence[tuple[str, ComparisonSummary]], remainders: Sequence[Remainder | None] = ()) -> NullRate:
    """Return the rate of these studies, each given by name and outcome; there is at least one.

    Raises:
        BadData: a study was compared without recording whether its methods are better.
    """
    for name, summary in studies:
        if any(score.difference is not None and score.outcome is None for score in summary.scores):
            raise BadData(
                f"{name} was compared by a version that recorded differences without their outcomes, so whether a method beats "
                f"{summary.reference} is not known; compare it again: clusterlora compare --name {name}"
            )
    return NullRate(tuple(name for name, _ in studies), tuple(summary for _, summary in studies), tuple(remainders))
