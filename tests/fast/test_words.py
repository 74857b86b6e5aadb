"""Words as metrics count them: between spaces, and character by character where a script has none."""

import re
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
        ("불을 켜 주세요", ["불을", "켜", "주세요"]),
        ("Größe_ändern, 5 Stück", ["größe", "ändern", "5", "stück"]),
    ],
)
def test_scripts_without_spaces_are_split_into_characters_and_others_into_words(text: str, expected: list[str]) -> None:
    assert words(text) == expected


@given(st.text(st.characters(max_codepoint=0x0DFF)))
def test_scripts_with_spaces_are_split_between_what_is_no_letter_or_digit(text: str) -> None:
    assert [word for word in words(text) if word.isalnum()] == re.findall(r"[^\W_]+", text.lower())


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
