"""Metrics and reference points, with a small embedding whose cosines are computed by hand."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from clusterlora.errors import BadData, UnknownName
from clusterlora.evaluation.metric import Scorable
from clusterlora.evaluation.metrics import METRICS
from clusterlora.evaluation.reference_points import floor, most_similar_of_others

VOCABULARY = ("lights", "warm", "cool", "tv", "louder", "please")


class BagOfWords:
    """One axis per word of a small vocabulary, one for texts that hold none; unit length."""

    name = "bag-of-words"
    revision = "1"

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        counts = np.array([[text.lower().split().count(word) for word in VOCABULARY] for text in texts], dtype=np.float32)
        embeddings = np.column_stack([counts, counts.sum(axis=1) == 0])
        return embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)


def score(metric: str, texts: Sequence[str], references: Sequence[str], nll: np.ndarray | None = None) -> np.ndarray:
    return METRICS[metric].score(Scorable(texts=texts, references=references, embedder=BagOfWords(), nll=nll))


def test_similarity_is_the_cosine_of_the_embeddings():
    texts, references = ["lights warm", "lights warm", "tv"], ["lights warm", "lights cool", "lights"]
    assert score("embedding_similarity", texts, references) == pytest.approx([1.0, 0.5, 0.0])


@pytest.mark.parametrize("empty", ["", "   ", "\n"])
def test_an_empty_answer_scores_no_similarity_even_against_a_reference_without_known_words(empty: str):
    assert score("embedding_similarity", [empty, "tv"], ["unheard", "tv"]) == pytest.approx([0.0, 1.0])
    assert score("rouge_l", [empty], ["unheard"]) == pytest.approx([0.0])


@pytest.mark.parametrize("metric", ["embedding_similarity", "rouge_l"])
def test_no_answers_give_no_scores(metric: str):
    assert score(metric, [], []).shape == (0,)


def test_rouge_l_is_the_f1_of_the_longest_common_subsequence():
    # Common subsequence "set lights warm": precision 3/4, recall 3/5.
    f1 = 2 * 0.75 * 0.6 / (0.75 + 0.6)
    assert score("rouge_l", ["Set the lights warm."], ["Set your bedroom lights warm!"]) == pytest.approx([f1])


PROSE = st.text(st.characters(max_codepoint=127, exclude_characters="+*=<>&|^~@#$\\{}[]!-/%"), max_size=60)


@given(PROSE, PROSE)
def test_on_ascii_prose_rouge_l_equals_the_package_default(text: str, reference: str):
    assert score("rouge_l", [text], [reference])[0] == RougeScorer(["rougeL"]).score(reference, text)["rougeL"].fmeasure


def test_rouge_l_reads_other_scripts():
    assert score("rouge_l", ["Включи свет", "Größe 5"], ["включи свет", "größe 5"]) == pytest.approx([1.0, 1.0])


def test_nll_comes_from_the_model_and_a_missing_value_is_refused():
    assert score("nll", ["a", "b"], ["a", "b"], np.array([1.5, 2.5])) == pytest.approx([1.5, 2.5])
    with pytest.raises(BadData, match="and has none"):
        score("nll", ["a"], ["a"])
    with pytest.raises(BadData, match="and has 1;"):
        score("nll", ["a", "b"], ["a", "b"], np.array([1.5]))


def test_the_likelihood_is_the_geometric_mean_of_the_probabilities_of_the_tokens():
    tokens = np.array([0.5, 0.125, 0.25])
    assert score("likelihood", ["", ""], ["a", "b"], np.array([-np.log(tokens).mean(), 0.0])) == pytest.approx([0.25, 1.0])
    assert METRICS["likelihood"].format(0.25) == "25.00"
    with pytest.raises(BadData, match="and has none"):
        score("likelihood", ["a"], ["a"])


def test_every_metric_is_listed_under_its_own_name_with_its_direction():
    assert all(name == metric.name for name, metric in METRICS.items())
    assert {name for name, metric in METRICS.items() if not metric.higher_is_better} == {
        "nll",
        "repetition",
        "copy_rate",
        "prompt_tokens",
        "mae",
        "rmse",
    }
    with pytest.raises(UnknownName, match="unknown metric 'bleu'; known: ") as refusal:
        METRICS["bleu"]
    assert set(str(refusal.value).partition("known: ")[2].split(", ")) == {*METRICS}


def test_similarity_is_shown_in_percent_and_nll_as_it_is():
    assert METRICS["embedding_similarity"].format(0.82144) == "82.14"
    assert METRICS["embedding_similarity"].format(0.0231, signed=True) == "+2.31"
    assert METRICS["nll"].format(-1.5, signed=True) == "-1.500"


def test_the_floor_is_the_mean_over_pairs_of_different_personas():
    references = {"a": ["lights", "lights warm"], "b": ["lights cool"], "c": ["tv louder please", "tv", "warm"]}
    embedded = {persona: BagOfWords().encode(texts) for persona, texts in references.items()}
    pairs = [(embedded[p] @ embedded[q].T).mean() for p in references for q in references if p != q]
    assert floor(references, BagOfWords()) == pytest.approx(np.mean(pairs))


def test_a_floor_needs_two_personas_with_references():
    with pytest.raises(BadData, match="at least 2"):
        floor({"a": ["tv"]}, BagOfWords())
    with pytest.raises(BadData, match="'b' has no references"):
        floor({"a": ["tv"], "b": []}, BagOfWords())


def test_the_most_similar_prompt_belongs_to_another_person_even_where_ones_own_is_the_same():
    prompts = {"a": ["lights warm", "lights warm"], "b": ["tv louder"], "c": ["lights cool", "tv louder please"]}
    # Numbers: a 0, 1; b 2; c 3, 4. Both of a's find "lights cool", b's finds c's, which finds it back.
    assert most_similar_of_others(prompts, BagOfWords()).tolist() == [3, 3, 4, 0, 2]


def test_a_same_prompt_floor_needs_two_personas_with_prompts():
    with pytest.raises(BadData, match="at least 2"):
        most_similar_of_others({"a": ["tv"]}, BagOfWords())
    with pytest.raises(BadData, match="'b' has no prompts"):
        most_similar_of_others({"a": ["tv"], "b": []}, BagOfWords())


def test_prompt_tokens_come_from_the_model_and_missing_ones_are_refused():
    answers = Scorable(texts=["a", "b"], references=["x", "y"], embedder=BagOfWords(), prompt_tokens=[12, 90])
    assert METRICS["prompt_tokens"].score(answers).tolist() == [12.0, 90.0]
    with pytest.raises(BadData, match=r"prompt_tokens needs the length of every prompt \(2\), and has none"):
        score("prompt_tokens", ["a", "b"], ["x", "y"])
