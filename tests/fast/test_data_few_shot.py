"""Few-shot prompts show the persona's own most similar train exchanges, and nothing else changes."""

from collections.abc import Sequence

import numpy as np
import pytest

from clusterlora.data.few_shot import exchanges, with_shots
from clusterlora.values import Dialogue, Exchange, Persona, Turn


class LetterEmbedder:
    """Texts that share letters are alike."""

    name = "letters"
    revision = "1"

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        counts = np.array([[1e-3 + text.lower().count(letter) for letter in "abcdefghijklmnopqrstuvwxyz"] for text in texts])
        return counts / np.linalg.norm(counts, axis=1, keepdims=True)


KNOWN = (Exchange("zzz", "asleep"), Exchange("lights up", "20"), Exchange("lights upp", "30"), Exchange("mmm", "eaten"))
TURNS = (Turn("system", "Be brief."), Turn("user", "xx"), Turn("assistant", "yy"), Turn("user", "lights up"))


def test_the_most_similar_exchanges_stand_after_the_system_turn_the_closest_last() -> None:
    shown = with_shots(TURNS, KNOWN, 2, LetterEmbedder())
    assert shown == (
        TURNS[0],
        Turn("user", "lights upp"),
        Turn("assistant", "30"),
        Turn("user", "lights up"),
        Turn("assistant", "20"),
        *TURNS[1:],
    )


@pytest.mark.parametrize(("exchanges", "count"), [((), 3), (KNOWN, 0)])
def test_without_exchanges_or_shots_the_prompt_is_unchanged(exchanges: tuple[Exchange, ...], count: int) -> None:
    assert with_shots(TURNS, exchanges, count, LetterEmbedder()) == TURNS


def test_at_most_the_known_exchanges_are_shown_and_they_lead_without_a_system_turn() -> None:
    assert len(with_shots(TURNS, KNOWN[:1], 5, LetterEmbedder())) == len(TURNS) + 2
    assert with_shots(TURNS[3:], KNOWN[1:2], 1, LetterEmbedder()) == (Turn("user", "lights up"), Turn("assistant", "20"), TURNS[3])


def test_only_train_dialogues_are_ever_shown() -> None:
    spoken = (
        Turn("user", "a"),
        Turn("assistant", "b"),
        Turn("user", "c"),
        Turn("user", "d"),
        Turn("assistant", "e"),
        Turn("assistant", "f"),
    )
    secret = (Turn("user", "secret"), Turn("assistant", "secret"))
    persona = Persona(
        "p", None, (Dialogue("1", spoken, split="train"), Dialogue("2", secret, split="val"), Dialogue("3", secret, split="test"))
    )
    assert exchanges(persona) == (Exchange("a", "b"), Exchange("d", "e"))
