"""Everything the report shows, as values."""

from dataclasses import dataclass

from clusterlora.comparison.appendix import NO_APPENDIX, Appendix
from clusterlora.comparison.new_personas import NewPersonas
from clusterlora.comparison.result import Comparison
from clusterlora.evaluation.memorisation import Memorisation
from clusterlora.persona_signal.measure import PersonaSignal
from clusterlora.values import Attempt, Clustering, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a method costs with one training seed.

    `n_bytes` is the size of the adapters that answer; `train_tokens` and `train_seconds` cover every adapter that the method trained,
    selected from or merged.
    """

    method: str
    n_adapters: int
    n_bytes: int
    train_tokens: int
    train_seconds: float
    money: float | None = None
    """Of these tokens, at what a token that this study trained cost; None where that is unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Training losses of an adapter, or their mean over several, as (step, loss). When not `complete`, only the first and the last loss."""

    title: str
    points: tuple[tuple[int, float], ...]
    n_steps: int
    complete: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleAnswer:
    """The answer of a method and its score on the headline metric."""

    method: str
    text: str
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A test item with the answer of every method."""

    persona_id: str
    cluster: int
    item_id: str
    prompt: str
    reference: str
    answers: tuple[ExampleAnswer, ...]


SPENT_COLUMNS = ("phase", "device", "hours", "kWh", "cost")
"""The header of the table of what devices did."""

TRIAL_COLUMNS = (
    "method",
    "recipe",
    "learning rate",
    "epochs",
    "rank",
    "alpha",
    "dropout",
    "layers",
    "start",
    "rounds",
    "people",
    "val loss",
    "outcome",
)
"""The header of the table of recipes that were tried."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportData:
    """Everything the report shows of a compared study. Parts that a study lacks are empty or None; their panels say so or are left out.

    When `newcomers` is None, `held_out_share` says whether the study was to measure them. `settings` and `provenance` are display pairs
    (name, value); `imported` lists scores of other scripts as (file, metric, personas, mean); `trials` the recipes that were tried, as
    TRIAL_COLUMNS say; `warnings` are sentences about how the models fit the data.
    """

    study: str
    comparison: Comparison
    clustering: Clustering | None = None
    verdicts: tuple[Verdict, ...] = ()
    signal: PersonaSignal | None = None
    memory: Memorisation | None = None
    """What shared adapters have memorised; None where it was not measured."""
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
    trials: tuple[tuple[str, ...], ...] = ()
    warnings: tuple[str, ...] = ()
    appendix: Appendix = NO_APPENDIX
    refresh: tuple[tuple[str, str], ...] = ()
    """What a refresh found, as pairs (what, found)."""
    spent: tuple[tuple[str, ...], ...] = ()
    """What devices did, as SPENT_COLUMNS say."""
    spent_says: tuple[str, ...] = ()
    """The totals in sentences."""
    currency: str = "EUR"
