"""How likely every label is as the answer to a prompt: what a labelled study chooses by, when it is evaluated and when it is served."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.special import softmax

from clusterlora.chat.encoder import EncodedTurn, PromptEncoder
from clusterlora.engine.generation import Question
from clusterlora.engine.inference_backends import InferenceBackend, all_replies
from clusterlora.engine.memory import BatchSize
from clusterlora.evaluation.metric import LabelProbabilities
from clusterlora.values import Turn


@dataclass(frozen=True, slots=True)
class LabelScores:
    """The log-likelihood of every label after each prompt, in nats, and the prompts as tokens."""

    labels: tuple[str, ...]
    log_likelihood: Float[np.ndarray, "prompt label"]
    turns: Sequence[EncodedTurn]
    """One per prompt and label, those of a prompt together."""

    @property
    def probabilities(self) -> LabelProbabilities:
        """How likely every label is, given that the answer is one of them."""
        return LabelProbabilities(self.labels, softmax(self.log_likelihood, axis=1))

    def mean_nll(self, prompt: int, label: str) -> float:
        """Return a label's mean negative log-likelihood per token, in nats."""
        column = self.labels.index(label)
        return -float(self.log_likelihood[prompt, column]) / len(self.turns[prompt * len(self.labels) + column].response)


def score_labels(
    backend: InferenceBackend,
    encoder: PromptEncoder,
    prompts: Sequence[Sequence[Turn]],
    slots: Sequence[int],
    labels: Sequence[str],
    *,
    batch_size: BatchSize,
    on_scored: Callable[[], None] = lambda: None,
) -> LabelScores:
    """Return the scores of all labels after each prompt, which the adapters in its slot answer; nothing is generated.

    A label's likelihood is that of its tokens and of the end of the turn, so one that another begins with is not favoured. The questions of
    a prompt differ in their last tokens alone: where the backend shares prefixes, it computes their prompt once.

    Args:
        on_scored: called when all labels of a prompt are scored.

    Raises:
        BadData: a prompt is too long.
        OutOfMemory: a single row does not fit.
    """
    n_labels = len(labels)
    turns = encoder.encode_turns([(tuple(prompt), label) for prompt in prompts for label in labels])
    questions = [Question(turn.prompt, slots[number // n_labels], turn.response) for number, turn in enumerate(turns)]
    log_likelihood = np.zeros(len(questions))
    missing = [n_labels] * len(prompts)
    for reply in all_replies(backend, questions, max_new_tokens=None, batch_size=batch_size):
        log_likelihood[reply.number] = -reply.nll * len(questions[reply.number].reference)
        missing[reply.number // n_labels] -= 1
        if not missing[reply.number // n_labels]:
            on_scored()
    return LabelScores(tuple(labels), log_likelihood.reshape(len(prompts), n_labels), turns)
