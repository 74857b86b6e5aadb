"""All metrics, by the name used in settings and results."""

from clusterlora.catalog import Catalog
from clusterlora.evaluation.metric import Metric
from clusterlora.evaluation.metrics.embedding_similarity import EMBEDDING_SIMILARITY
from clusterlora.evaluation.metrics.nll import NLL
from clusterlora.evaluation.metrics.rouge_l import ROUGE_L

METRICS: Catalog[Metric] = Catalog(
    "metric",
    {
        "embedding_similarity": EMBEDDING_SIMILARITY,
        "nll": NLL,
        "rouge_l": ROUGE_L,
    },
)
