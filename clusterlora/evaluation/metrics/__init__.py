"""All metrics, by their name in settings and results."""

from collections.abc import Sequence

from clusterlora.catalog import Catalog
from clusterlora.evaluation.metric import Metric
from clusterlora.evaluation.metrics.accuracy import ACCURACY
from clusterlora.evaluation.metrics.chrf import CHRF
from clusterlora.evaluation.metrics.copy_rate import COPY_RATE
from clusterlora.evaluation.metrics.device_f1 import DEVICE_F1
from clusterlora.evaluation.metrics.embedding_similarity import EMBEDDING_SIMILARITY
from clusterlora.evaluation.metrics.judge import JUDGE
from clusterlora.evaluation.metrics.length_ratio import LENGTH_RATIO
from clusterlora.evaluation.metrics.likelihood import LIKELIHOOD
from clusterlora.evaluation.metrics.macro_f1 import MACRO_F1
from clusterlora.evaluation.metrics.mae import MAE
from clusterlora.evaluation.metrics.nll import NLL
from clusterlora.evaluation.metrics.number_f1 import NUMBER_F1
from clusterlora.evaluation.metrics.numeric_accuracy import NUMERIC_ACCURACY
from clusterlora.evaluation.metrics.parameter_f1 import PARAMETER_F1
from clusterlora.evaluation.metrics.persona_accuracy import PERSONA_ACCURACY
from clusterlora.evaluation.metrics.prompt_tokens import PROMPT_TOKENS
from clusterlora.evaluation.metrics.repetition import REPETITION
from clusterlora.evaluation.metrics.rmse import RMSE
from clusterlora.evaluation.metrics.rouge_l import ROUGE_L

METRICS: Catalog[Metric] = Catalog(
    "metric",
    {
        "embedding_similarity": EMBEDDING_SIMILARITY,
        "nll": NLL,
        "rouge_l": ROUGE_L,
        "chrf": CHRF,
        "length_ratio": LENGTH_RATIO,
        "repetition": REPETITION,
        "copy_rate": COPY_RATE,
        "persona_accuracy": PERSONA_ACCURACY,
        "device_f1": DEVICE_F1,
        "parameter_f1": PARAMETER_F1,
        "numeric_accuracy": NUMERIC_ACCURACY,
        "prompt_tokens": PROMPT_TOKENS,
        "likelihood": LIKELIHOOD,
        "number_f1": NUMBER_F1,
        "accuracy": ACCURACY,
        "macro_f1": MACRO_F1,
        "mae": MAE,
        "rmse": RMSE,
        "judge": JUDGE,
    },
)


def generates(metrics: Sequence[str]) -> bool:
    """Return whether these metrics need generated answers."""
    return any(METRICS[name].reads_answers for name in metrics)


def scores_labels(metrics: Sequence[str]) -> bool:
    """Return whether these metrics need the likelihood of every label."""
    return any(METRICS[name].tasks for name in metrics)
