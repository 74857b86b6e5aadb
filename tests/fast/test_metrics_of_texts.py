"""Metrics of texts against hand-computed examples and laws: chrF, length, repetition, and the metrics on train responses."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusterlora.data.words import words
from clusterlora.errors import BadData
from clusterlora.evaluation.metric import Scorable
from clusterlora.evaluation.metrics import METRICS
from clusterlora.evaluation.train_responses import TrainResponses
from clusterlora.values import Dialogue, Persona, Turn

AXES = ("lights", "warm", "please", "aye", "captain", "certainly", "sir")


class Counting:
    """One axis per word, unit length; counts how many texts it was given."""

    name = "counting"
    revision = "1"

    def __init__(self) -> None:
        self.n_encoded = 0

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        self.n_encoded += len(texts)
        counts = np.array([[text.lower().split().count(word) for word in AXES] for text in texts], dtype=np.float32)
        counts = np.column_stack([counts, counts.sum(axis=1) == 0])
        return counts / np.linalg.norm(counts, axis=1, keepdims=True)


def persona(name: str, *responses: str, held_out: str = "unseen words of the test split that nobody may ever look at here") -> Persona:
    train = tuple(Dialogue(f"{name}{i}", (Turn("user", "ask"), Turn("assistant", text)), split="train") for i, text in enumerate(responses))
    return Persona(name, None, (*train, Dialogue(f"{name}t", (Turn("user", "ask"), Turn("assistant", held_out)), split="test")))


def score(
    metric: str,
    texts: Sequence[str],
    references: Sequence[str] | None = None,
    *,
    people: Sequence[Persona] = (),
    asked_by: Sequence[str] | None = None,
    embedder: Counting | None = None,
) -> list[float]:
    scorable = Scorable(
        texts=texts,
        references=texts if references is None else references,
        embedder=embedder or Counting(),
        persona_ids=asked_by,
        train=TrainResponses(people) if people else None,
    )
    return METRICS[metric].score(scorable).tolist()


def chrf_by_hand(text: str, reference: str) -> float:
    """Mean over run lengths of F2 of the runs' multisets (Popović 2015), as plainly as it can be written."""
    text, reference = "".join(text.split()), "".join(reference.split())
    scores = []
    for n in range(1, min(6, len(text), len(reference)) + 1):
        text_grams = Counter(text[i : i + n] for i in range(len(text) - n + 1))
        reference_grams = Counter(reference[i : i + n] for i in range(len(reference) - n + 1))
        common = (text_grams & reference_grams).total()
        precision, recall = common / text_grams.total(), common / reference_grams.total()
        scores.append(5 * precision * recall / (4 * precision + recall) if common else 0.0)
    return sum(scores) / len(scores) if scores else 0.0


def test_chrf_of_a_worked_example() -> None:
    # "abcd" for "abce": runs of 1: 3/4, of 2: 2/3, of 3: 1/2, of 4: 0, precision and recall alike.
    assert score("chrf", ["ab cd"], ["abce"]) == pytest.approx([(3 / 4 + 2 / 3 + 1 / 2 + 0) / 4])


@given(st.text(max_size=30), st.text(max_size=30))
def test_chrf_agrees_with_its_definition(text: str, reference: str) -> None:
    assert score("chrf", [text], [reference]) == pytest.approx([chrf_by_hand(text, reference)], abs=1e-12)


@pytest.mark.parametrize("text", ["OK", "TV an", "Größe 5", "светло"])
def test_a_short_answer_equal_to_its_reference_has_a_chrf_of_1(text: str) -> None:
    assert score("chrf", [text], [text]) == pytest.approx([1.0])


def test_chrf_forgives_a_left_out_word_less_than_an_added_one() -> None:
    left_out, added = score("chrf", ["lights warm", "the lights are warm"], ["the lights are warm", "lights warm"])
    assert left_out < added, "recall weighs twice as much"


def test_an_answer_half_or_twice_as_long_has_half_the_length_score() -> None:
    texts = ["one two", "one two three four", "one, two - three four!", "", "..."]
    references = ["a b c d", "a b", "a b c d", "a", "!"]
    assert score("length_ratio", texts, references) == [0.5, 0.5, 1.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("x + 1", "x + 1"),
        ("x - 1", "x - 1"),
        ("y = -x", "y = - x"),
        ("total[i - 1] != (a - b) ** 2", "total [ i - 1 ] != ( a - b ) ** 2"),
        ("if (!done && n % 2 == 0) i++;", "if ( ! done && n % 2 == 0 ) i ++ ;"),
        ("p->next / 3.0 ≤ ε", "p -> next / 3 0 ≤ ε"),
        ("`print(a[1:])`, `print(a[:1])`.", "print ( a [ 1 : ] ) print ( a [ : 1 ] )"),
        ("y = f(x), y\nTell me, f(x): is it y?", "y = f ( x ) , y tell me f x is it y"),
        ("`'a' ? b.c : d`", "' a ' ? b . c : d"),
        ("`println!(x)` and `user!.name`", "println ! ( x ) and user ! . name"),
        ("x-1", "x - 1"),
        ("x/1", "x / 1"),
        ("a-b", "a - b"),
        ("x/y/z", "x / y / z"),
        ("2-x, 1/n", "2 - x 1 / n"),
        ("f(x)-g(y)/h(z)", "f x - g y / h z"),
        ("a-(b+c)", "a - b + c"),
        ("i--;", "i --"),
        ("i--", "i --"),
        ("while (n--) --i;", "while n -- -- i"),
        ("10%3 or 10 % 3", "10 % 3 or 10 % 3"),
        ("width = total-count/10-5/2", "width = total - count / 10 - 5 / 2"),
        ("An e-mail of `total-count`, not `total/count`.", "an e mail of total - count not total / count"),
        ("Half-done:\n```\nreturn total-count\n```\na half-done one", "half done return total - count a half done one"),
        ("A half-written\n```\nreturn total-count", "a half written return total - count"),
        (
            "A/C on 24/7 for 10-15 minutes from 2026-11-30, F-16, n't, such a--",
            "a c on 24 7 for 10 15 minutes from 2026 11 30 f 16 n t such a",
        ),
        (
            "A state-of-the-art T-shirt: \"well-known\" -- he/she didn't; rock 'n' roll",
            "a state of the art t shirt well known he she didn t rock n roll",
        ),
        ("Great! An e-mail - and/or 40 % of HDMI-1, isn't it?", "great an e mail and or 40 of hdmi 1 isn t it"),
    ],
)
def test_operators_are_words_and_the_punctuation_of_prose_is_not(text: str, tokens: str) -> None:
    assert words(text, code=True) == tokens.split()


def test_code_that_differs_in_an_operator_is_not_the_same_code() -> None:
    pairs = (
        ("x-1", "x/1"),
        ("a/b", "a-b"),
        ("i--", "i"),
        ("--i", "-i"),
        ("n-1", "n 1"),
        ("x//2", "x/2"),
        ("10%3", "10 3"),
        ("y=a-b", "y=a/b"),
    )
    assert max(score("rouge_l", *zip(*pairs, strict=True))) < 1
    # Two of three words in common.
    assert score("rouge_l", ["x - 1", "x + 1"], ["x + 1", "x + 1"]) == pytest.approx([2 / 3, 1.0])
    assert score("length_ratio", ["x + y", "x y"], ["x - y", "x - y"]) == pytest.approx([1.0, 2 / 3])
    people = (persona("p", "a + b + c + d + e"),)
    assert score("copy_rate", ["a + b + c + d + e", "a * b * c * d * e"], people=people, asked_by=["p", "p"]) == [1.0, 0.0]


def test_a_repeated_operation_is_a_repetition() -> None:
    # "x + x + x + x": four runs of four words, two of them different.
    assert score("repetition", ["x + x + x + x", "x + y - z * w"]) == [0.5, 0.0]


@given(st.text(max_size=40), st.text(max_size=40))
def test_the_length_score_is_symmetric_and_at_most_1(text: str, reference: str) -> None:
    forth, back = score("length_ratio", [text], [reference]), score("length_ratio", [reference], [text])
    assert forth == back
    assert 0 <= forth[0] <= 1


def test_repetition_is_the_share_of_runs_of_four_words_said_before() -> None:
    # "a b c d a b c d a": six runs, of which abcd and bcda come again.
    assert score("repetition", ["a b c d a b c d a"]) == pytest.approx([2 / 6])
    assert score("repetition", ["Warm, warm! warm warm WARM", "the lights are warm", "too short", ""]) == [0.5, 0.0, 0.0, 0.0]


@given(st.lists(st.sampled_from("abc"), max_size=20), st.integers(2, 4))
def test_repeating_a_text_never_lowers_repetition(said: list[str], times: int) -> None:
    once, again = score("repetition", [" ".join(said), " ".join(said * times)])
    assert 0 <= once <= again < 1


TOLD = "Certainly, captain: I have set the lights to warm for your reading hour."


def test_copy_rate_is_the_share_of_runs_of_eight_words_from_the_personas_own_train_responses() -> None:
    people = (persona("p", TOLD, "Something else."), persona("q", "Certainly not, captain, I have heard of no such lights in here."))
    # Ten words of the fourteen told, then one of one's own: eleven words, four runs, the last of which is not told.
    partly = "certainly captain i have set the lights to warm for you"
    texts = [TOLD, partly, TOLD, "certainly captain", "", "unseen words of the test split that nobody may ever look at here"]
    rates = score("copy_rate", texts, people=people, asked_by=["p", "p", "q", "p", "p", "p"])
    assert rates == pytest.approx([1.0, 3 / 4, 0.0, 0.0, 0.0, 0.0])


def test_an_answer_that_is_copied_into_code_is_copied() -> None:
    people = (persona("p", TOLD),)
    texts = [f"`{TOLD}`", f"```\n{TOLD}\n```", f"note = {TOLD}"]
    rates = score("copy_rate", texts, people=people, asked_by=["p"] * 3)
    assert rates == [1.0, 1.0, 0.75], "`note` is a word of its own, in two runs"


def test_a_copied_run_lies_within_one_response_and_whole_words() -> None:
    people = (persona("p", "one two three four", "five six seven eight", "bone two three four five six seven eighty"),)
    assert score("copy_rate", ["one two three four five six seven eight"], people=people, asked_by=["p"]) == [0.0]


PIRATE = persona("pirate", "aye captain lights", "aye captain warm", "aye captain please")
BUTLER = persona("butler", "certainly sir lights", "certainly sir warm", "certainly sir please")


def test_persona_accuracy_is_1_where_the_answer_sounds_like_the_person_it_is_for() -> None:
    texts = ["aye captain", "certainly sir", "certainly sir lights warm", "", "lights aye captain"]
    asked_by = ["pirate", "butler", "pirate", "pirate", "pirate"]
    assert score("persona_accuracy", texts, people=(PIRATE, BUTLER), asked_by=asked_by) == [1.0, 1.0, 0.0, 0.0, 1.0]


def test_the_topic_of_a_prompt_does_not_decide_persona_accuracy() -> None:
    """Both speak mostly of the same thing; only whitening by the spread within personas sees the one word that tells them apart."""
    pirate = persona("pirate", "lights lights lights aye", "warm warm warm aye", "please please please aye", "lights lights lights aye")
    butler = persona("butler", "lights lights lights sir", "warm warm warm sir", "please please please sir", "warm warm warm sir")
    texts = ["warm warm warm aye", "lights lights lights sir"]
    assert score("persona_accuracy", texts, people=(pirate, butler), asked_by=["pirate", "butler"]) == [1.0, 1.0]


def test_persona_accuracy_agrees_with_scikit_learns_discriminant_analysis() -> None:
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    rng = np.random.default_rng(0)
    taste = rng.dirichlet(np.full(len(AXES), 0.5), size=6)
    responses = [[" ".join(rng.choice(AXES, size=6, p=p)) for _ in range(12)] for p in taste]
    people = [persona(str(number), *texts[:8]) for number, texts in enumerate(responses)]
    asked_by = [str(number) for number in range(6) for _ in range(4)]
    held_out = [text for texts in responses for text in texts[8:]]
    accuracy = score("persona_accuracy", held_out, people=people, asked_by=asked_by)
    embedder = Counting()
    learner = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.02, priors=np.full(6, 1 / 6))
    learner.fit(embedder.encode([text for texts in responses for text in texts[:8]]), np.repeat(np.arange(6), 8))
    theirs = learner.predict(embedder.encode(held_out)) == np.array(asked_by, dtype=int)
    assert 0.2 < np.mean(accuracy) < 1.0, "a task too hard or too easy would prove nothing"
    assert np.mean(np.array(accuracy) == theirs) >= 0.9, "the amounts of shrinkage differ a little"


def test_the_classifier_is_trained_once_for_all_answers_of_a_composition() -> None:
    embedder, train = Counting(), TrainResponses((PIRATE, BUTLER))
    for _ in range(3):
        METRICS["persona_accuracy"].score(
            Scorable(texts=["aye"], references=["aye"], embedder=embedder, persona_ids=["pirate"], train=train)
        )
    assert embedder.n_encoded == 6 + 3


def test_train_responses_holds_train_responses_only() -> None:
    assert TrainResponses((PIRATE,)).by_persona == {"pirate": ("aye captain lights", "aye captain warm", "aye captain please")}


@pytest.mark.parametrize("metric", ["copy_rate", "persona_accuracy"])
def test_metrics_on_train_responses_name_them_when_they_are_missing(metric: str) -> None:
    with pytest.raises(BadData, match=f"metric {metric} needs .* and has no train responses"):
        score(metric, ["aye"], asked_by=["pirate"])
    with pytest.raises(BadData, match=f"metric {metric} needs .* and has no persona ids"):
        score(metric, ["aye"], people=(PIRATE,))


OF_TEXTS = [name for name, one in METRICS.items() if not (name in ("nll", "likelihood", "prompt_tokens") or one.tasks or one.pairwise)]


@pytest.mark.parametrize("metric", OF_TEXTS)
def test_every_metric_is_finite_whatever_there_is_to_score(metric: str) -> None:
    nobody, silent = persona("nobody"), persona("silent", "")
    texts, references = ["", "?!", "aye captain", "the the the"], ["aye", "...", "aye captain", "x"]
    for people, asked_by in (((nobody,), ["nobody"] * 4), ((PIRATE, silent), ["pirate", "silent", "stranger", "pirate"])):
        values = score(metric, texts, references, people=people, asked_by=asked_by)
        assert len(values) == 4
        assert np.isfinite(values).all()
    assert score(metric, [], people=(PIRATE,), asked_by=[]) == []
