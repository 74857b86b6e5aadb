"""Train exchanges in prompts: those that rank first with the question, by sentence embeddings or BM25, before the dialogue."""

from collections.abc import Callable, Collection, Sequence

import numpy as np
from jaxtyping import Float

from clusterlora.data.prompts import messages
from clusterlora.data.words import words
from clusterlora.errors import BadData
from clusterlora.ports.embedder import Embedder
from clusterlora.settings import PreparedModel
from clusterlora.values import Dialogue, Exchange, Persona, Ranking, Split, Turn

Asked = list[tuple[tuple[Turn, ...], str]]
"""Prompts with the answers that are to come."""

_DECIMALS = 5
"""Of a rank's score: two exchanges that differ by less than rounding are a tie, on every machine."""

_QUESTIONS_KEPT = 10_000
"""Questions whose order is remembered: more than a study asks of one index, and a bound for a server."""

_KEPT = 16
"""Of an order, the positions that are remembered for the next count; a cluster may have thousands of exchanges for every question."""


def exchanges(persona: Persona) -> tuple[Exchange, ...]:
    """Return every user turn of the persona's train dialogues with the assistant turn that follows it."""
    return tuple(exchange for dialogue in persona.of_split("train") for exchange in exchanges_in(dialogue))


def exchanges_in(dialogue: Dialogue) -> tuple[Exchange, ...]:
    """Return every user turn of a dialogue with the assistant turn that follows it."""
    return tuple(
        Exchange(before.text, after.text)
        for before, after in zip(dialogue.turns, dialogue.turns[1:], strict=False)
        if before.role == "user" and after.role == "assistant"
    )


class ExchangeIndex:
    """Exchanges ranked by how well their questions match another one: nothing else of a dialogue is read, least of all its answer."""

    def __init__(self, examples: Sequence[Exchange], ranking: Ranking = "embedding", embedder: Embedder | None = None) -> None:
        """Index the examples. Raises BadData: a ranking by embeddings without an embedder."""
        if ranking == "embedding" and embedder is None:
            raise BadData("ranking 'embedding' needs an embedding model; give one, or rank by bm25")
        self.examples = tuple(examples)
        self._ranking = ranking
        self._embedder = embedder
        self._embedded: Float[np.ndarray, "example dim"] | None = None
        self._nearest_by_question: dict[str, np.ndarray] = {}
        self._score = _bm25([e.question for e in examples]) if ranking == "bm25" else self._similarity

    def nearest(self, question: str, count: int, *, without: Collection[int] = ()) -> tuple[Exchange, ...]:
        """Return the `count` exchanges that rank first, the first one last; fewer if there are fewer.

        Of equal ones the later one ranks first.

        Args:
            without: positions of examples that must not be shown.
        """
        if not self.examples:
            return ()
        needed = min(len(self.examples), count + len(without))
        last = self._nearest_by_question.get(question)
        if last is None or len(last) < needed:
            order = np.argsort(np.round(self._score(question), _DECIMALS), kind="stable")
            if len(self._nearest_by_question) >= _QUESTIONS_KEPT:
                self._nearest_by_question.clear()
            # A copy: a view would keep the whole order.
            last = self._nearest_by_question[question] = order[-max(needed, _KEPT) :].astype(np.int32)
        shown = [position for position in last.tolist() if position not in without]
        return tuple(self.examples[position] for position in shown[max(0, len(shown) - count) :])

    def _similarity(self, question: str) -> Float[np.ndarray, " example"]:
        assert self._embedder is not None
        if self._embedded is None:
            self._embedded = self._embedder.encode([example.question for example in self.examples])
        return (self._embedded @ self._embedder.encode([question])[0]).astype(np.float64)


def _bm25(texts: Sequence[str]) -> Callable[[str], Float[np.ndarray, " text"]]:
    """Return the function from a question to the BM25 score of each text, over `words`: Robertson & Zaragoza 2009 as Lucene computes it."""
    # Imported here: it takes half a second, and only retrieval needs it.
    import bm25s

    corpus = [words(text) for text in texts]
    if not any(corpus):
        return lambda _: np.zeros(len(texts))
    index = bm25s.BM25(method="lucene")
    index.index(corpus, show_progress=False)

    def score(question: str) -> Float[np.ndarray, " text"]:
        query = words(question)
        return np.asarray(index.get_scores(query), dtype=np.float64) if query else np.zeros(len(texts))

    return score


def with_shots(turns: Sequence[Turn], index: ExchangeIndex, count: int, *, without: Collection[int] = ()) -> tuple[Turn, ...]:
    """Return the turns with `count` exchanges of the index inserted after the system turn, fewer if there are fewer.

    They are ranked by the last user turn, and the nearest stands last. Where a prompt becomes too long, whole turns are dropped from its
    beginning (`chat.encoder`), so exchanges before turns of the dialogue, and the farthest of them first.
    """
    question = next((turn.text for turn in reversed(turns) if turn.role == "user"), "")
    if count < 1:
        return tuple(turns)
    nearest = index.nearest(question, count, without=without)
    shown = [turn for example in nearest for turn in (Turn("user", example.question), Turn("assistant", example.answer))]
    n_system = sum(1 for turn in turns[:1] if turn.role == "system")
    return (*turns[:n_system], *shown, *turns[n_system:])


def answers_with_shots(settings: PreparedModel, persona: Persona, split: Split, ranking: Ranking, embedder: Embedder, count: int) -> Asked:
    """Return (prompt, answer) of every assistant turn of a split, with `count` of the persona's train exchanges in the prompt.

    What a train dialogue is shown is of other dialogues.
    """
    of_dialogue = [(dialogue.id, exchange) for dialogue in persona.of_split("train") for exchange in exchanges_in(dialogue)]
    index = ExchangeIndex([exchange for _, exchange in of_dialogue], ranking, embedder)
    asked: Asked = []
    for dialogue in persona.of_split(split):
        own = frozenset(position for position, (name, _) in enumerate(of_dialogue) if split == "train" and name == dialogue.id)
        turns = messages(settings, persona, dialogue)
        answers = [i for i, turn in enumerate(turns) if turn.role == "assistant"]
        asked += [(with_shots(turns[:i], index, count, without=own), turns[i].text) for i in answers]
    return asked
