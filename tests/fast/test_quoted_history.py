"""Quotations of a person's dialogues are found as they are written, in one pass over the words, whatever the answers have in common."""

import html
import json
import sys
from collections.abc import Callable, Sequence
from types import FrameType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusterlora.data.conversations import n_overlapping, related_groups
from clusterlora.data.escapes import unescaped
from clusterlora.data.phrases import Phrases, Words
from clusterlora.data.quoted_history import quoting_pairs
from clusterlora.values import Dialogue, Turn

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


def cut(i: int) -> tuple[str, str]:
    return f"please see to the lamp in room {i}", f"Sure, I can do that: the lamp ... in room {i} is seen to."


@pytest.mark.parametrize("exchange", [alike, short, same, repeating, cut])
def test_twice_the_dialogues_are_twice_the_work_whatever_their_answers_have_in_common(exchange: Callable[[int], tuple[str, str]]) -> None:
    few, many = rows(exchange, 40), rows(exchange, 160)
    assert n_calls(many) < 6 * n_calls(few), "of four times as many"


def test_an_exchange_that_many_dialogues_have_and_quote_needs_few_pairs() -> None:
    dialogues = rows(same, 40)
    pairs = list(quoting_pairs(dialogues))
    assert len(pairs) < 6 * len(dialogues), "five pairs at most: one per quoted exchange, and one that it is paired with first"
    assert n_overlapping(dialogues) == len(dialogues)


TALKS = (
    (
        (
            "Mach bitte das „Licht“ in der Küche etwas heller",
            "Die Küche leuchtet jetzt:\nschön hell & gemütlich für Dich, \U00020bb7",
        ),
        ("Und nun ein wenig Musik für später", 'Gern, ich spiele am Abend\n- ruhige Stücke\n- und/oder "Grüße"'),
        ("Wie wird das Wetter morgen früh", "Morgen früh scheint größtenteils die Sonne \\o/"),
    ),
    (
        ("Wer hat gestern angerufen", "Gestern rief Jürgen an, er möchte fünf Äpfel"),
        ("Was kostet das zusammen", "Fünf Äpfel kosten zusammen drei Euro fünfzig"),
        ("Danke für die Auskünfte heute", "Gern geschehen, schönen Tag wünsche ich noch"),
    ),
)
Talk = Sequence[tuple[str, str]]


def as_json(talk: Talk) -> str:
    return json.dumps([{"role": role, "content": text} for pair in talk for role, text in zip(("user", "assistant"), pair, strict=True)])


def as_html(talk: Talk) -> str:
    return "".join(f"<p>User: {html.escape(q)}</p><p>Bot: {html.escape(a)}</p>".replace("\n", "<br/>") for q, a in talk)


ESCAPED: dict[str, Callable[[Talk], str]] = {
    "json": as_json,
    "json in json": lambda talk: json.dumps(as_json(talk)),
    "json of PHP": lambda talk: as_json(talk).replace("/", r"\/"),
    "json of Go": lambda talk: as_json(talk).replace("&", r"\u0026"),
    "python": lambda talk: ascii(list(talk)),
    "html": as_html,
    "html references": lambda talk: as_html(talk).encode("ascii", "xmlcharrefreplace").decode(),
    "html in html": lambda talk: html.escape(as_html(talk).encode("ascii", "xmlcharrefreplace").decode()),
}


FRAMED: dict[str, Callable[[Talk], str]] = {
    "html with attributes": lambda talk: "".join(f'<p class="u">{html.escape(q)}</p><p class="b">{html.escape(a)}</p>' for q, a in talk),
    "assignments": lambda talk: "".join(f"user = {q}\nbot = {a}\n" for q, a in talk),
    "arrows": lambda talk: "".join(f"{q} => {a}\n" for q, a in talk),
    "a fence": lambda talk: "```\n" + "".join(f"User: {q}\nBot: {a}\n" for q, a in talk) + "```",
    "json in a fence": lambda talk: f"```json\n{as_json(talk)}\n```",
    "a line with an equation": lambda talk: "x = 1; " + "; ".join(f"{q}: {a}" for q, a in talk),
    "code with an ellipsis": lambda talk: "```python\ndef f(a, b):\n    ...\n```" + "".join(f"User: {q}\nBot: {a}\n" for q, a in talk),
}
PUNCTUATED = (
    tuple((f"Could you check attic {i}, please?", f"Yes: attic number {i} is fine, and door {i} is locked, too.") for i in range(3)),
    tuple((f"Is boat {i} tied up, then?", f"Not yet, sir: the rope of boat {i} is wet (still), so it waits.") for i in range(3)),
)


@pytest.mark.parametrize("form", FRAMED)
def test_a_history_that_stands_in_code_is_found(form: str) -> None:
    """Punctuation is no word there, as it is none in the turn that is quoted."""
    assert related_groups(with_history(FRAMED[form], PUNCTUATED)) == ((0, 1, 2), (3, 4, 5))


def test_a_call_that_several_rows_hold_is_too_little_to_tell_a_conversation() -> None:
    calls = ("`df.head(5)`", '`print("hi")`', "`a, b = b, a`")
    answered = [Dialogue(f"a{i}", (Turn("user", f"Show me {i}"), Turn("assistant", call))) for i, call in enumerate(calls)]
    asked = [
        Dialogue(f"b{i}", (Turn("user", f"What is {call} for, in words {i}?"), Turn("assistant", f"It does {i}")))
        for i, call in enumerate(calls)
    ]
    assert len(related_groups([*answered, *asked])) == 6


def test_an_opening_that_prompts_give_is_no_answer_of_which_they_quote_the_beginning() -> None:
    opening = "Dear Sir or Madam, I am writing to you ..."
    answers = (
        "Dear Sir or Madam, I am writing to you about the boat",
        "Hello Tom, what of the boat",
        "The boat is mine, and so are the oars",
    )
    rows = [
        Dialogue(f"{i}", (Turn("user", f"Finish this mail to {who}: {opening}"), Turn("assistant", answer)))
        for i, (who, answer) in enumerate(zip(("Ida", "Tom", "Ann"), answers, strict=True))
    ]
    others = [Dialogue(f"o{i}", (Turn("user", f"number {i}"), Turn("assistant", f"it is {i}"))) for i in range(6)]
    assert len(related_groups([*rows, *others])) == 9


def with_history(written: Callable[[Talk], str], talks: Sequence[Talk] = TALKS) -> list[Dialogue]:
    """Return a row per exchange of two conversations, with the history so far as it is written."""
    return [
        Dialogue(f"{k}-{i}", (Turn("user", f"{written(talk[:i]) if i else ''}\nUser: {talk[i][0]}"), Turn("assistant", talk[i][1])))
        for k, talk in enumerate(talks)
        for i in range(3)
    ]


@pytest.mark.parametrize("form", ESCAPED)
def test_a_history_that_stands_escaped_in_a_prompt_is_found(form: str) -> None:
    assert related_groups(with_history(ESCAPED[form])) == ((0, 1, 2), (3, 4, 5))


@given(text=st.text(st.sampled_from("a\\n\"'&;<br />u00fcx#amplt\n") | st.characters(exclude_categories=["Cc", "Cn", "Co", "Cs"])))
def test_text_that_was_written_out_is_the_same_afterwards_however_often(text: str) -> None:
    plain = unescaped(f'"{text}"')
    for escape in (json.dumps, lambda text: html.escape(f'"{text}"').encode("ascii", "xmlcharrefreplace").decode()):
        assert unescaped(escape(text)) == plain
        assert unescaped(json.dumps(escape(text))[1:-1]) == plain
        assert unescaped(html.escape(escape(text))) == plain


@pytest.mark.parametrize("text", ["\\", "&amp;", "<br ", "\\u00fc", "\\\\u", "&#1", "&", "<"])
def test_unescaping_takes_time_in_proportion_to_the_text(text: str) -> None:
    """A pattern that tries again from every character would need minutes for so many."""
    assert len(unescaped(text * 200_000)) <= len(text) * 200_000


CUTS: dict[str, Callable[[str], str]] = {
    "at a letter": lambda answer: f"{answer[:33]}...",
    "after a word": lambda answer: f"{' '.join(answer.split()[:7])} …",
    "in brackets": lambda answer: f"{' '.join(answer.split()[:6])} [...]",
    "escaped": lambda answer: f"{answer[:33]}\\u2026",
}


def asked_shortly(i: int) -> tuple[str, str]:
    return f"What about number {i}?", f"{('One', 'Two', 'Six', 'Ten')[i]} of them went down to the river in {i} boats, and more came"


def answered_alike(i: int) -> tuple[str, str]:
    wish = ("Would you dim the hall", "Open all windows upstairs", "It is too warm", "Wake me at seven")[i]
    return wish, f"Sure, I can do that for you at once: it takes {i} minutes"


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("exchange", [asked_shortly, answered_alike])
def test_the_beginning_of_an_answer_before_an_ellipsis_quotes_it(exchange: Callable[[int], tuple[str, str]], cut: str) -> None:
    """It is told from others by its own six words, or by the question before it where others begin so, too."""
    talk = [exchange(i) for i in range(4)]
    quoted = [Dialogue(f"a{i}", (Turn("user", q), Turn("assistant", a))) for i, (q, a) in enumerate(talk)]
    later = [
        Dialogue(f"b{i}", (Turn("user", f"User: {q}\nBot: {CUTS[cut](a)}\nUser: {asked}"), Turn("assistant", f"{asked}{i}")))
        for i, ((q, a), asked) in enumerate(zip(talk, ("Why", "Really", "How so", "Indeed"), strict=True))
    ]
    assert related_groups([*quoted, *later]) == ((0, 4), (1, 5), (2, 6), (3, 7))


@pytest.mark.parametrize(
    "text",
    [
        "You said: Sure, I can do that for you at ... and then?",
        "Would you dim the hall? Sure, I can do that for you at",
        "Would you dim the hall? Sure, I ... hm",
        "You said that one of them went ... where?",
        "Tell me about the river again. Sure, I can do ... what?",
        "Well... what now?",
    ],
    ids=["several answers", "no ellipsis", "two words", "four words without a question", "a question with two answers", "no answer"],
)
def test_too_little_of_an_answer_before_an_ellipsis_quotes_nothing(text: str) -> None:
    talk = [*map(answered_alike, range(4)), asked_shortly(0)]
    talk += [("Tell me about the river again", f"Sure, I can do {what} if you like") for what in ("so", "it")]
    rows = [Dialogue(f"a{i}", (Turn("user", q), Turn("assistant", a))) for i, (q, a) in enumerate(talk)]
    quoting = Dialogue("q", (Turn("user", text), Turn("assistant", "Fine.")))
    assert related_groups([*rows, quoting]) == tuple((n,) for n in range(len(rows) + 1))


@given(phrases=st.lists(few_words, unique=True, max_size=6), text=st.lists(st.sampled_from("abcd"), max_size=12).map(tuple))
def test_the_longest_beginning_of_a_phrase_is_found_at_every_end(phrases: list[Words], text: Words) -> None:
    def longest(end: int) -> tuple[int, list[int]]:
        for start in range(end):
            if numbers := [n for n, phrase in enumerate(phrases) if phrase[: end - start] == text[start:end]]:
                return start, numbers
        return end, []

    expected = [
        (start, end, numbers[0] if len(numbers) == 1 else None)
        for end in range(1, len(text) + 1)
        for before in (end, end - 1)
        for start, numbers in [longest(before)]
        if numbers
    ]
    assert list(Phrases(phrases).begun_in(text, range(1, len(text) + 1))) == expected
