"""ROUGE-L: F1 of the longest common subsequence of words of answer and reference (Lin 2004)."""

import numpy as np
from jaxtyping import Float

from clusterlora.data.words import words
from clusterlora.evaluation.metric import Metric, Scorable


class UnicodeWords:
    """Tokenises lower-case words of any script and operators; equals rouge-score's own tokenizer on ASCII prose."""

    def tokenize(self, text: str) -> list[str]:
        """Return the words; rouge-score calls this method."""
        return words(text, code=True)


def rouge_l(answers: Scorable) -> Float[np.ndarray, " item"]:
    """Return ROUGE-L F1 per item, in 0..1."""
    from rouge_score.rouge_scorer import RougeScorer  # the import takes half a second

    scorer = RougeScorer(["rougeL"], tokenizer=UnicodeWords())
    pairs = zip(answers.references, answers.texts, strict=True)
    return np.array([scorer.score(reference, text)["rougeL"].fmeasure for reference, text in pairs], dtype=np.float64)


ROUGE_L = Metric(name="rouge_l", label="ROUGE-L", higher_is_better=True, percent=True, score=rouge_l)
