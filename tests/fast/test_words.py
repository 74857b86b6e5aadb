"""Words as metrics count them: between spaces, and character by character where a script has none."""

import re
import unicodedata
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusterlora.data.words import words
from clusterlora.evaluation.metric import Scorable
from clusterlora.evaluation.metrics import METRICS
from clusterlora.evaluation.train_responses import TrainResponses
from clusterlora.values import Dialogue, Persona, Turn


class Unasked:
    """An embedder that no metric of these tests reads."""

    name = "unasked"
    revision = "1"

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        raise AssertionError(texts)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("把客厅的灯调到20%。", [*"把客厅的灯调到", "20"]),
        ("ライトを Warm に", [*"ライトを", "warm", "に"]),
        ("ไฟ on", [*"ไฟ", "on"]),
        ("ﾗｲﾄを", [*"ﾗｲﾄを"]),
        ("ꦲꦏ꧀ꦱꦫ", ["ꦲ", "ꦏ꧀", "ꦱ", "ꦫ"]),
        ("ꆈꌠꁱꂷ", [*"ꆈꌠꁱꂷ"]),
        ("ᦅᦱᧄᦺᦑᦟᦹᧉ", [*"ᦅᦱᧄᦺᦑᦟᦹᧉ"]),
        ("불을 켜 주세요", ["불을", "켜", "주세요"]),
        ("Größe_ändern, 5 Stück", ["größe", "ändern", "5", "stück"]),
        ("मेरा बेटा, मेरी बेटी", ["मेरा", "बेटा", "मेरी", "बेटी"]),
        ("की-का", ["की", "का"]),
        ("น้ำ 2 แก้ว", ["น้", "ำ", "2", "แ", "ก้", "ว"]),
        ("كَتَبَ الدَّرْسَ.", ["كَتَبَ", "الدَّرْسَ"]),
        ("வணக்கம், நன்றி", ["வணக்கம்", "நன்றி"]),
        ("می\u200cخواهم بروم", ["می\u200cخواهم", "بروم"]),
        ("CAFE\u0301 Café", ["café", "café"]),
        ("1\ufe0f\u20e3 Preheat ✔\ufe0f", ["1", "preheat"]),
    ],
)
def test_scripts_without_spaces_are_split_into_characters_and_others_into_words(text: str, expected: list[str]) -> None:
    assert words(text) == expected


@given(st.text(st.characters(max_codepoint=0x058F, exclude_categories=["Mn", "Mc", "Me"], exclude_characters="İ")))  # small it has a mark
def test_scripts_with_spaces_are_split_between_what_is_no_letter_or_digit(text: str) -> None:
    letters = re.findall(r"[^\W_]+", unicodedata.normalize("NFC", text))
    assert [word.casefold() for word in words(text) if word.isalnum()] == [word.casefold() for word in letters]


def letters_of(text: str) -> str:
    """Return the letters and digits without their case; a letter's other case may be a letter with a mark."""
    return "".join(filter(str.isalnum, "".join(filter(str.isalnum, text)).casefold()))


@given(st.text(), st.booleans())
def test_no_letter_is_lost_and_no_word_begins_with_a_mark(text: str, code: bool) -> None:
    tokens = words(text, code=code)
    assert letters_of("".join(tokens)) == letters_of(unicodedata.normalize("NFC", text))
    assert not [token for token in tokens if unicodedata.category(token[0]).startswith("M")]


@pytest.mark.parametrize(("one", "other"), [("की", "का"), ("मेरा बेटा", "मेरी बेटी"), ("ใกล้", "ไกล"), ("น้ำ", "นำ"), ("كُتِبَ", "كَتَبَ")])
def test_words_that_differ_in_a_mark_alone_are_different_words(one: str, other: str) -> None:
    assert words(one) != words(other)
    assert METRICS["rouge_l"].score(Scorable(texts=[one], references=[other], embedder=Unasked()))[0] < 1


def test_metrics_of_words_tell_chinese_answers_apart() -> None:
    reference, near, far = "请把客厅的灯调到百分之二十", "请把卧室的灯调到百分之四十", "好"
    scorable = Scorable(texts=[reference, near, far], references=[reference] * 3, embedder=Unasked())
    same, like, other = METRICS["rouge_l"].score(scorable)
    assert (same, other) == (1, 0)
    assert 0.5 < like < 0.9
    assert METRICS["length_ratio"].score(scorable).tolist() == pytest.approx([1, 1, 1 / 13])
    again = Scorable(texts=["开灯开灯开灯开灯", near], references=[reference] * 2, embedder=Unasked())
    assert METRICS["repetition"].score(again).tolist() == pytest.approx([0.6, 0.0])
    train = (Dialogue("d", (Turn("user", "灯"), Turn("assistant", reference)), split="train"),)
    copied = Scorable(
        texts=[reference, "可以给您打开阳台的窗户和门"],
        references=[reference] * 2,
        embedder=Unasked(),
        persona_ids=["a", "a"],
        train=TrainResponses([Persona("a", None, train)]),
    )
    assert METRICS["copy_rate"].score(copied).tolist() == [1, 0]


def test_no_mark_of_a_letter_is_beyond_the_planes_that_are_searched() -> None:
    beyond = [chr(code) for code in range(0x20000, 0x110000) if unicodedata.category(chr(code)) in ("Mn", "Mc")]
    assert [mark for mark in beyond if "VARIATION SELECTOR" not in unicodedata.name(mark)] == []
