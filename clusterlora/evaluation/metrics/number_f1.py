"""Agreement of the numbers that answer and reference contain, whatever they are about."""

import re
from collections import Counter
from decimal import Decimal

import numpy as np
from jaxtyping import Float

from clusterlora.evaluation.metric import Metric, Scorable

_NUMBER = re.compile(
    r"(?P<sign>(?<![\w)\]])[-\u2212](?=[$€£¥]?\.?\d))?[$€£¥]?"  # no hyphen as in 10-15
    r"(?:(?<![\w.])\.(?P<fraction>\d+)|(?P<digits>\d+(?:[.,'\u2019_\u00a0\u2009\u202f\u066b\u066c]\d+)*))"
)
_ARABIC_POINT = "\u066b"


def number_f1(answers: Scorable) -> Float[np.ndarray, " item"]:
    """Return F1 of the numbers per item, in 0..1, each counted as often as it stands there; what counts is the value, see `numbers`.

    If the reference has no number, an answer without one scores 1, any other 0.
    """

    def of_pair(text: str, reference: str) -> float:
        expected, actual = numbers(reference), numbers(text)
        n_both = expected.total() + actual.total()
        return 2 * (expected & actual).total() / n_both if n_both else 1.0

    return np.array([of_pair(text, reference) for text, reference in zip(answers.texts, answers.references, strict=True)], dtype=np.float64)


def numbers(text: str) -> Counter[Decimal]:
    """Return how often each number stands in a text, by its value: 3.0 is 3, 1,5 is 1.5, ۲۰ is 20, and -5 is not 5.

    Digits are those of any script; numbers in words are not read. A minus sign stands before the number without a space, and after nothing
    that it could join or subtract from: `10-15` has two positive numbers. Point and comma separate decimals, except that these are
    thousands: groups of three behind a separator that comes twice or before the other one (`1,234,567`, `1.234,5`), and a single group of
    three behind a comma (`1,000`), unless a zero or more than three digits come before it. `1.000` may be either, and is read as 1.
    Apostrophes, underscores and unbreakable spaces separate thousands only. What is no single number by these rules, as `30.11.2026` and
    `1,2,3`, is read as several.
    """
    found: Counter[Decimal] = Counter()
    for match in _NUMBER.finditer(text):
        first, *others = [Decimal(f"0.{match['fraction']}")] if match["fraction"] else _values(match["digits"])
        found.update((-first if match["sign"] else first, *others))
    return found


def _values(written: str) -> list[Decimal]:
    """Return the number that digits with separators between them are, or those that they are made of."""
    digits, separators = re.split(r"\D", written), re.findall(r"\D", written)
    if not separators:
        return [Decimal(written)]
    *before, last = separators
    if last == _ARABIC_POINT or (last in (".", ",") and last not in before and not (last == "," and _is_grouped(digits, separators))):
        if _is_grouped(digits[:-1], before):
            return [Decimal(f"{''.join(digits[:-1])}.{digits[-1]}")]
    elif _is_grouped(digits, separators):
        return [Decimal("".join(digits))]
    return [Decimal(part) for part in digits]


def _is_grouped(digits: list[str], separators: list[str]) -> bool:
    """Return whether the separators stand before groups of three digits, as those of thousands do; so they do where there are none."""
    if not separators:
        return True
    first, *groups = digits
    return len(set(separators)) == 1 and len(first) <= 3 and int(first[0]) > 0 and all(len(group) == 3 for group in groups)


NUMBER_F1 = Metric(
    name="number_f1",
    label="number F1",
    higher_is_better=True,
    percent=True,
    score=number_f1,
    carried=lambda text: bool(numbers(text)),
)
