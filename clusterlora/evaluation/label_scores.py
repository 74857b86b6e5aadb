"""How likely every label is as the answer to a prompt: what a labelled study chooses by, when it is evaluated and when it is served."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.special import softmax

from clusterlora.chat.encoder import EncodedTurn, PromptEncoder
from clusterlora.engine.generation import Question
from clusterlora.engine.inference_backends import InferenceBackend, all_replies
from clusterlora.engine.memory import BatchSize
from clusterlora.values import Turn


@dataclass(frozen=True, slots=True)
class LabelScores:
    """The log-likelihood of every label after a prompt, in nats, and the prompt as tokens with each of them."""

    labels: tuple[str, ...]
    log_likelihood: Float[np.ndarray, " label"]
    turns: Sequence[EncodedTurn]

    @property
    def probabilities(self) -> Float[np.ndarray, " label"]:
        """How likely every label is, given that the answer is one of them."""
        return softmax(self.log_likelihood)

    @property
    def likeliest(self) -> str:
        """The likeliest label; of equally likely ones the first."""
        return self.labels[self.probabilities.argmax()]

    def mean_nll(self, label: str) -> float:
        """Return a label's mean negative log-likelihood per token, in nats."""
        column = self.labels.index(label)
        return -float(self.log_likelihood[column]) / len(self.turns[column].response)


def score_labels(
    backend: InferenceBackend,
    encoder: PromptEncoder,
    prompts: Sequence[Sequence[Turn]],
    slots: Sequence[int],
    labels: Sequence[str],
    *,
    batch_size: BatchSize,
) -> Iterator[tuple[int, LabelScores]]:
    """Yield each prompt's number with the scores of all labels after it, which the adapters in its slot answer; nothing is generated.

    A label's likelihood is that of its tokens and of the end of the turn, so one that another begins with is not favoured. The questions of
    a prompt differ in their last tokens alone: where the backend shares prefixes, it computes their prompt once.

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
            prompt = reply.number // n_labels
            of_prompt = slice(prompt * n_labels, (prompt + 1) * n_labels)
            yield prompt, LabelScores(tuple(labels), log_likelihood[of_prompt], turns[of_prompt])
