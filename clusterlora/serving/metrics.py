"""What a server counts, as Prometheus reads it; no label names a person."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class ServerMetrics:
    """The counters of one server, in a registry of their own."""

    def __init__(self, *, n_running: Callable[[], int], n_waiting: Callable[[], int]) -> None:
        registry = self._registry = CollectorRegistry()
        self.requests = Counter("clusterlora_requests", "Requests by their HTTP status.", ["status"], registry=registry)
        self.answers = Counter(
            "clusterlora_answers",
            "Answers by whether the person is in the study and by why they ended.",
            ["persona", "end"],
            registry=registry,
        )
        self.prompt_tokens = Counter("clusterlora_prompt_tokens", "Tokens of prompts.", registry=registry)
        self.completion_tokens = Counter("clusterlora_completion_tokens", "Tokens of answers.", registry=registry)
        self.seconds = Histogram("clusterlora_answer_seconds", "Seconds per answer.", buckets=_SECONDS, registry=registry)
        self.first_token_seconds = Histogram(
            "clusterlora_first_token_seconds", "Seconds to the first token.", buckets=_SECONDS, registry=registry
        )
        self.loads = Counter("clusterlora_model_loads", "Models loaded since the start, by outcome.", ["outcome"], registry=registry)
        self.model = Gauge("clusterlora_model", "1 for the model that answers.", ["name", "version"], registry=registry)
        for name, what, read in (("running", "being answered", n_running), ("waiting", "that wait for a slot", n_waiting)):
            Gauge(f"clusterlora_{name}_requests", f"Requests {what}.", registry=registry).set_function(read)

    def exposition(self) -> bytes:
        """Return all of it as text."""
        return generate_latest(self._registry)
