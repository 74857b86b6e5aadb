"""Quotations of a person's dialogues are found in one pass over the words, however much the answers have in common."""

import sys
from collections.abc import Callable
from types import FrameType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusterlora.data.conversations import n_overlapping
from clusterlora.data.phrases import Phrases, Words
from clusterlora.data.quoted_history import quoting_pairs
from clusterlora.values import Dialogue, Persona, Turn

few_words = st.lists(st.sampled_from("abc"), max_size=6).map(tuple)


@given(phrases=st.lists(few_words, unique=True, max_size=8), text=st.lists(st.sampled_from("abcd"), max_size=30).map(tuple))
def test_phrases_are_found_wherever_the_text_has_their_words(phrases: list[Words], text: Words) -> None:
    found = sorted(Phrases(phrases).found_in(text))
    assert found == [
        (start, number)
        for start in range(len(text))
        for number, phrase in enumerate(phrases)
        if phrase and text[start : start + len(phrase)] == phrase
    ]


def alike(i: int) -> tuple[str, str]:
    return f"please see to the lamp in room {i}", f"Sure, I can do that: the lamp in room {i} is seen to."


def short(i: int) -> tuple[str, str]:
    return f"please see to the lamp in room {i}", "Done."


def same(i: int) -> tuple[str, str]:
    room = ("hall", "study")[i % 2]
    return f"turn on the light in the {room}", f"The light in the {room} is on."


def repeating(i: int) -> tuple[str, str]:
    return f"say it {i}", "the " * 30 + str(i)


def rows(exchange: Callable[[int], tuple[str, str]], n: int) -> list[Dialogue]:
    """Return a row per exchange with the last four before it as text."""
    talk = [exchange(i) for i in range(n)]
    return [
        Dialogue(
            f"d{i}",
            (
                Turn("user", f"Day {i}: " + "".join(f"User: {q}\nBot: {a}\n" for q, a in talk[max(0, i - 4) : i]) + f"User: {asked}"),
                Turn("assistant", answer),
            ),
        )
        for i, (asked, answer) in enumerate(talk)
    ]


def n_calls(dialogues: list[Dialogue]) -> int:
    """Return how many Python functions are called or resumed while the pairs are looked for."""
    calls = 0

    def count(_frame: FrameType, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event == "call"

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        list(quoting_pairs(dialogues))
    finally:
        sys.setprofile(before)
    return calls


@pytest.mark.parametrize("exchange", [alike, short, same, repeating])
def test_twice_the_dialogues_are_twice_the_work_whatever_their_answers_have_in_common(exchange: Callable[[int], tuple[str, str]]) -> None:
    few, many = rows(exchange, 40), rows(exchange, 160)
    assert n_calls(many) < 6 * n_calls(few), "of four times as many"


def test_an_exchange_that_many_dialogues_have_and_quote_needs_few_pairs() -> None:
    dialogues = rows(same, 40)
    pairs = list(quoting_pairs(dialogues))
    assert len(pairs) < 6 * len(dialogues), "five pairs at most: one per quoted exchange, and one that it is paired with first"
    assert n_overlapping(Persona("ann", None, tuple(dialogues))) == len(dialogues)
