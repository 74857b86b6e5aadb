"""Everything the report shows, as values."""

from dataclasses import dataclass

from clusterlora.comparison.new_personas import NewPersonas
from clusterlora.comparison.result import Comparison
from clusterlora.persona_signal.measure import PersonaSignal
from clusterlora.values import Attempt, Clustering, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a method needs with one training seed.

    `n_bytes` is what answers people; tokens and seconds trained all that it chose among and was made of.
    """

    method: str
    n_adapters: int
    n_bytes: int
    train_tokens: int
    train_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Train losses of an adapter, or their mean over several, as (step, loss). Not `complete`: only the first and the last are known."""

    title: str
    points: tuple[tuple[int, float], ...]
    n_steps: int
    complete: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleAnswer:
    """What a method answered, and its score on the headline metric."""

    method: str
    text: str
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One test item as every method answered it."""

    persona_id: str
    cluster: int
    item_id: str
    prompt: str
    reference: str
    answers: tuple[ExampleAnswer, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportData:
    """A study that has been compared. What a study does not have is empty or None, and its panel says so or is left out.

    Without `newcomers`, `held_out_share` tells whether they were to be measured. `settings` and `provenance` are (name, value) pairs for
    people, `imported` (file, metric, personas, mean) of scores of other scripts.
    """

    study: str
    comparison: Comparison
    clustering: Clustering | None = None
    verdicts: tuple[Verdict, ...] = ()
    signal: PersonaSignal | None = None
    newcomers: NewPersonas | None = None
    held_out_share: float | None = None
    curves: tuple[Curve, ...] = ()
    costs: tuple[Cost, ...] = ()
    examples: tuple[Example, ...] = ()
    attempts: tuple[Attempt, ...] = ()
    seconds_by_part: tuple[tuple[str, float], ...] = ()
    settings: tuple[tuple[str, str], ...] = ()
    provenance: tuple[tuple[str, str], ...] = ()
    imported: tuple[tuple[str, str, str, str], ...] = ()
