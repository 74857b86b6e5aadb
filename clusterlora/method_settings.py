"""Settings of single methods, and of the measurement beside them."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le

from clusterlora.recipe import MOST_SEED

_FORM = {"extra": "forbid", "use_attribute_docstrings": True}


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeSettings:
    """How the method `merge` combines the adapters of a cluster's members."""

    __pydantic_config__ = _FORM

    kind: Literal["average", "ties", "dare"] = "average"
    """average: weighted by examples; ties: only the largest changes, by majority of sign; dare: a random share of the changes."""
    density: Annotated[float, Gt(0), Le(1)] | None = None
    """Share of each adapter's changes that ties and dare keep. Empty: 0.2 for ties, 0.5 for dare."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrievalSettings:
    """What the methods with retrieval may show in a prompt: one combination for the whole study, chosen on val."""

    __pydantic_config__ = _FORM

    counts: tuple[Annotated[int, Ge(0), Le(100)], ...] = (0, 1, 3, 5)
    """How many train exchanges a prompt may show. With 0, retrieval is left out where it does not help on val."""
    rankings: tuple[Literal["bm25", "embedding"], ...] = ("bm25", "embedding")
    """By what exchanges are ranked, from the question alone: BM25 over words, or the cosine of the study's sentence embeddings."""
    sources: tuple[Literal["own", "cluster"], ...] = ("own", "cluster")
    """Whose train exchanges are shown: the persona's own, or those of everybody in its cluster, its own among them."""
    trained_shots: Annotated[int, Ge(1), Le(100)] | None = None
    """Exchanges of the persona's other train dialogues in every prompt that the adapters of these methods learn from, by the first of
    `rankings`. They are then adapters of their own. Empty: they answer with the adapters of the methods without retrieval."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeSettings:
    """The language model that compares answers with unified's, for the metric `judge`. It is sent prompts, references and answers."""

    __pydantic_config__ = _FORM

    address: str | None = None
    """Where it is: any server that speaks OpenAI's chat completions, for example http://127.0.0.1:8000/v1. Its key, where it asks for one,
    is OPENAI_API_KEY in the environment of whatever compares."""
    model: str | None = None
    """Its name there."""
    preferences: str | None = None
    """JSONL file of people's preferences (prompt, reference, first, second, preferred), with which its own are compared. Empty: none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AssignmentSettings:
    """Whether a study measures how well new personas are assigned to clusters, as by `clusterlora assign`."""

    __pydantic_config__ = _FORM

    held_out_share: Annotated[float, Gt(0), Le(0.5)] | None = None
    """Share of every cluster that a second unified and second cluster adapters do not learn from: they then choose for these people from
    1, 3, 5 and 10 dialogues. Costs unified and all clusters once more, less this share, and one answer per adapter to each held-out
    person's test items. Empty: not measured."""
    seed: Annotated[int, Ge(0), Le(MOST_SEED)] = 0
    """Seed of the held-out personas and of the dialogues that are drawn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RefreshSettings:
    """What a study goes on from; `clusterlora study refresh` fills it in."""

    __pydantic_config__ = _FORM

    root: str | None = None
    """The study that was run first, whose registered champion is refreshed. Empty: this study goes on from none."""
    number: Annotated[int, Ge(1), Le(1_000_000)] | None = None
    """Which refresh of the root this is, counted from 1."""
    of: str | None = None
    """The study whose data the new dialogues join: the last refresh, else the root."""
    champion: str | None = None
    """The study whose champion is challenged, and whose adapters are trained on."""
    champion_method: str | None = None
    """The method by which that champion answers."""
    replay: Annotated[float, Ge(0), Le(0.99)] = 0.5
    """Share of old dialogues among those that an adapter with news is trained on; the new ones are the rest."""
    own_adapter_from: Annotated[int, Ge(1), Le(1_000_000)] = 10
    """Train dialogues from which on a personal adapter answers its person by itself. With fewer it is mixed with their cluster's adapter,
    or unified, by the weight that val supports."""
    misfits: Annotated[float, Gt(0), Le(1)] = 0.25
    """Share of the people nearest to another cluster than their own above which everybody is clustered anew and the gate asked again."""
