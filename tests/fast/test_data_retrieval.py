"""Prompts show the train exchanges that rank first with the question, never one of val or test, and nothing else changes."""

from collections.abc import Sequence

import numpy as np
import pytest

from clusterlora.data.retrieval import ExchangeIndex, answers_with_shots, exchanges, with_shots
from clusterlora.errors import BadData
from clusterlora.settings import PreparedModel
from clusterlora.values import Dialogue, Exchange, Persona, Ranking, Turn


class LetterEmbedder:
    """Texts that share letters are alike."""

    name = "letters"
    revision = "1"

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        counts = np.array([[1e-3 + text.lower().count(letter) for letter in "abcdefghijklmnopqrstuvwxyz"] for text in texts])
        return counts / np.linalg.norm(counts, axis=1, keepdims=True)


def by_letters(examples: Sequence[Exchange]) -> ExchangeIndex:
    return ExchangeIndex(examples, "embedding", LetterEmbedder())


KNOWN = (Exchange("zzz", "asleep"), Exchange("lights up", "20"), Exchange("lights upp", "30"), Exchange("mmm", "eaten"))
TURNS = (Turn("system", "Be brief."), Turn("user", "xx"), Turn("assistant", "yy"), Turn("user", "lights up"))


def test_the_most_similar_exchanges_stand_after_the_system_turn_the_closest_last() -> None:
    shown = with_shots(TURNS, by_letters(KNOWN), 2)
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
    assert with_shots(TURNS, by_letters(exchanges), count) == TURNS


def test_at_most_the_known_exchanges_are_shown_and_they_lead_without_a_system_turn() -> None:
    assert len(with_shots(TURNS, by_letters(KNOWN[:1]), 5)) == len(TURNS) + 2
    assert with_shots(TURNS[3:], by_letters(KNOWN[1:2]), 1) == (Turn("user", "lights up"), Turn("assistant", "20"), TURNS[3])


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


def bm25_by_hand(texts: Sequence[Sequence[str]], query: list[str], *, k1: float = 1.5, b: float = 0.75) -> list[float]:
    """Return Lucene's BM25 as it stands in the literature, without the constant factor k1 + 1."""
    mean = sum(map(len, texts)) / len(texts)
    scores = [0.0] * len(texts)
    for word in query:
        n = sum(word in text for text in texts)
        idf = np.log(1 + (len(texts) - n + 0.5) / (n + 0.5))
        for number, text in enumerate(texts):
            count = text.count(word)
            scores[number] += idf * count / (count + k1 * (1 - b + b * len(text) / mean)) if count else 0.0
    return scores


def test_bm25_ranks_as_its_equation_does_whatever_the_script() -> None:
    texts = ["Turn the light on", "light light", "the window, the door", "把灯打开", "把灯关上"]
    index = ExchangeIndex([Exchange(text, str(number)) for number, text in enumerate(texts)], "bm25")
    split = [["turn", "the", "light", "on"], ["light", "light"], ["the", "window", "the", "door"], list("把灯打开"), list("把灯关上")]
    for question, query in (("the LIGHT", ["the", "light"]), ("关灯", ["关", "灯"]), ("light?", ["light"])):
        expected = [str(number) for number in np.argsort(np.round(bm25_by_hand(split, query), 5), kind="stable")]
        assert [example.answer for example in index.nearest(question, 5)] == expected, question


@pytest.mark.parametrize("texts", [(), ("", "..."), ("one", "two")])
def test_questions_and_exchanges_without_words_rank_without_an_error(texts: tuple[str, ...]) -> None:
    index = ExchangeIndex([Exchange(text, text) for text in texts], "bm25")
    assert len(index.nearest("...", 5)) == len(index.nearest("unknown", 5)) == len(texts)


def test_a_ranking_by_embeddings_needs_an_embedder() -> None:
    with pytest.raises(BadData, match="ranking 'embedding' needs an embedding model"):
        ExchangeIndex(KNOWN)


@pytest.mark.parametrize("ranking", ["bm25", "embedding"])
def test_what_adapters_learn_from_never_shows_the_dialogue_itself_nor_one_of_val(ranking: Ranking) -> None:
    def dialogue(n: int) -> Dialogue:
        turns = (Turn("user", "lights"), Turn("assistant", f"train {n}"), Turn("user", "more"), Turn("assistant", f"more {n}"))
        return Dialogue(str(n), turns, split="train")

    train = tuple(dialogue(n) for n in range(3))
    persona = Persona("p", None, (*train, Dialogue("v", (Turn("user", "lights"), Turn("assistant", "val")), (), "val")))
    asked = answers_with_shots(PreparedModel(), persona, "train", ranking, LetterEmbedder(), 4)
    assert [answer for _, answer in asked] == ["train 0", "more 0", "train 1", "more 1", "train 2", "more 2"]
    for number, (prompt, answer) in enumerate(asked):
        own, shown = str(number // 2), prompt[1:9]
        assert len(shown) == 8, "two exchanges of each of the other dialogues"
        assert not [turn for turn in shown if turn.text in (answer, "val") or turn.text.endswith(f" {own}")]
    ((prompt, _),) = answers_with_shots(PreparedModel(), persona, "val", ranking, LetterEmbedder(), 9)
    assert {turn.text for turn in prompt if turn.role == "assistant"} == {f"{kind} {n}" for kind in ("train", "more") for n in range(3)}


@pytest.mark.parametrize("ranking", ["bm25", "embedding"])
def test_a_longer_list_ends_with_the_shorter_one_whichever_was_asked_first(ranking: Ranking) -> None:
    examples = [Exchange(f"{'light ' * (n % 7)}{'on ' * (n % 5)}a", str(n)) for n in range(60)]

    def index() -> ExchangeIndex:
        return ExchangeIndex(examples, ranking, LetterEmbedder())

    whole = index().nearest("light on", 99)
    assert len(whole) == 60
    asked = index()
    for count in (1, 40, 3, 60):
        assert asked.nearest("light on", count) == whole[-count:]
    hidden = {int(example.answer) for example in whole[-20:]}
    assert index().nearest("light on", 5, without=hidden) == whole[-25:-20]
