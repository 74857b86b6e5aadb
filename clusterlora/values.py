"""The words of the project as values: frozen, comparable, made of tuples so that hashes are the same in every process."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cache
from typing import Any, Literal

from clusterlora.errors import BadSettings
from clusterlora.method_settings import MergeSettings
from clusterlora.recipe import Recipe

Role = Literal["system", "user", "assistant"]
Split = Literal["train", "val", "test"]
Scope = Literal["everybody", "cluster", "group", "person"]
"""Whom an adapter is for: everybody, a cluster (or a group as large), a group that a method put together, or one person."""

Ranking = Literal["embedding", "bm25"]
"""How exchanges are ordered by a question: cosine of sentence embeddings, or BM25 over words."""
ShotSource = Literal["own", "cluster"]
"""Whose train exchanges a prompt may show: the persona's own, or those of everybody in its cluster."""

_ADAPTER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}")


def digest(value: object, *, length: int = 16) -> str:
    """Return the first hex digits of the SHA-256 of a value's canonical JSON."""

    def plain(thing: object) -> Any:
        if is_dataclass(thing) and not isinstance(thing, type):
            return {name: getattr(thing, name) for name in _names(type(thing))}  # one level: the encoder asks for what is inside
        raise TypeError(f"cannot digest {type(thing).__name__}")

    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=plain)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


@cache
def _names(kind: type[Any]) -> tuple[str, ...]:
    return tuple(field.name for field in fields(kind))


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side said."""

    role: Role
    text: str


@dataclass(frozen=True, slots=True)
class Dialogue:
    """One conversation. `context` is what both sides can see besides the words (time of day, weather, ...)."""

    id: str
    turns: tuple[Turn, ...]
    context: tuple[tuple[str, str], ...] = ()
    split: Split | None = None


@dataclass(frozen=True, slots=True)
class Persona:
    """Somebody with dialogues. The id is data: it never names a file."""

    id: str
    description: str | None
    dialogues: tuple[Dialogue, ...]

    def of_split(self, split: Split) -> tuple[Dialogue, ...]:
        """Return the dialogues of one split, in order."""
        return tuple(d for d in self.dialogues if d.split == split)


@dataclass(frozen=True, slots=True)
class Dataset:
    """All personas of a study, in a stable order."""

    personas: tuple[Persona, ...]

    def __hash__(self) -> int:
        # Equality reads every word; where a dataset is looked up by, the ids are enough to tell nearly all apart.
        return hash(self.ids)

    @property
    def ids(self) -> tuple[str, ...]:
        """The persona ids, in order."""
        return tuple(p.id for p in self.personas)

    @property
    def n_dialogues(self) -> int:
        """Dialogues of all personas."""
        return sum(len(p.dialogues) for p in self.personas)

    def by_id(self) -> Mapping[str, Persona]:
        """Return the personas by their ids."""
        return {p.id: p for p in self.personas}

    @property
    def digest(self) -> str:
        """The identity of all content, splits included."""
        return digest(self.personas)


@dataclass(frozen=True, slots=True)
class Item:
    """One thing to answer: everything before an assistant turn (`messages`, system first), and that turn (`reference`)."""

    id: str
    persona_id: str
    split: Split
    messages: tuple[Turn, ...]
    reference: str


@dataclass(frozen=True, slots=True)
class Exchange:
    """Something a persona said and the answer it got."""

    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class Clustering:
    """A partition of the personas. `members[k]` are the persona ids of cluster k; `quality` what the report says of it.

    `curve` has (k, silhouette, held-out NLL) of every number of clusters that was tried; it is empty when the number was given.
    """

    algorithm: str
    members: tuple[tuple[str, ...], ...]
    quality: tuple[tuple[str, float], ...] = ()
    map_2d: tuple[tuple[str, float, float], ...] = ()
    curve: tuple[tuple[int, float, float], ...] = ()

    @property
    def sizes(self) -> tuple[int, ...]:
        """Personas in each cluster."""
        return tuple(len(m) for m in self.members)

    def cluster_by_persona(self) -> dict[str, int]:
        """Return the number of everybody's cluster."""
        return {p: k for k, ids in enumerate(self.members) for p in ids}


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterSpec:
    """What an adapter is: whom it is for, who it learns from, how, and what it starts from.

    Names are labels: what an adapter is, its fields say. A `cluster` number goes with that scope. `seed` counts the trainings of a study,
    from 0, and `rung` is that of the gate's ladder which it is trained for, None for the study's own; an adapter that one of the two sets
    apart is called otherwise, and a `variant_of` what its method calls it. Its weights are in `folder` under the study's `models/`.
    `init_from` names an adapter whose weights it starts from; `frozen_adapter` one that is active and frozen under it. With
    `merge_of` it is not trained but merged from the adapters of these names, as `merging` says. `persona_in_prompt` puts the persona's
    text into the prompts it learns from, whatever the study does; `shots` that many of the persona's other train exchanges, those first by
    `ranking`. `imported` is the hash of weights that were trained elsewhere, `kept` the key of weights that another study trained. `trial`
    is the number of the recipe that it tries; its rung then tells trials apart. `learns_from` are (person, dialogue ids): of whom it learns
    these train dialogues alone, where it does not learn all.
    """

    name: str
    persona_ids: tuple[str, ...]
    recipe: Recipe
    scope: Scope = "group"
    cluster: int | None = None
    variant_of: str | None = None
    seed: int = 0
    rung: str | None = None
    trial: int | None = None
    folder: str = ""
    init_from: str | None = None
    frozen_adapter: str | None = None
    merge_of: tuple[str, ...] = ()
    merging: MergeSettings | None = None
    persona_in_prompt: bool = False
    shots: int = 0
    ranking: Ranking = "embedding"
    imported: str | None = None
    kept: str | None = None
    learns_from: tuple[tuple[str, tuple[str, ...]], ...] = ()

    def __post_init__(self) -> None:
        """Check the name, and that scope, cluster and personas agree.

        Raises:
            BadSettings: they do not, or the name is none that folders and registries take.
        """
        if not _ADAPTER_NAME.fullmatch(self.name):
            raise BadSettings(f"adapter {self.name!r}: use at most 128 letters, digits and . _ + -, a letter or digit first")
        if self.folder and not _ADAPTER_NAME.fullmatch(self.folder):
            raise BadSettings(f"adapter {self.name} has folder={self.folder!r}; give the plain name of one folder, or none")
        if (self.scope == "cluster") != (self.cluster is not None):
            raise BadSettings(
                f"adapter {self.name} has scope={self.scope!r} and cluster={self.cluster}; give clusters a number, and only them"
            )
        if self.scope == "person" and len(self.persona_ids) != 1:
            raise BadSettings(f"adapter {self.name} is for one person but learns from {len(self.persona_ids)}; say scope='group'")

    @property
    def label(self) -> str:
        """Its name in the method that plans it, the same for every training seed and rung."""
        return self.variant_of or self.name

    @property
    def is_trial(self) -> bool:
        """Whether it is trained to choose a recipe."""
        return self.trial is not None

    @property
    def is_one_of_many(self) -> bool:
        """Whether it is small and has many of its kind: they share training runs, and a method's are one registered model."""
        return self.scope in ("group", "person")

    @property
    def needs(self) -> tuple[str, ...]:
        """The adapters that must exist before this one can be made."""
        return (*(name for name in (self.init_from, self.frozen_adapter) if name), *self.merge_of)


@dataclass(frozen=True, slots=True)
class WeightedAdapter:
    """An adapter in a composition, by name, its update scaled by `weight`."""

    name: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class AdapterComposition:
    """What answers: the base model with these adapters added, in order, and what its prompt shows besides the dialogue.

    `shots` is how many train exchanges of `shots_from` it shows, those first by `ranking` with the question; `persona_in_prompt` whether it
    shows the persona's text, whatever the study does. `AdapterComposition()` is the base model with the study's prompt.
    """

    adapters: tuple[WeightedAdapter, ...] = ()
    shots: int = 0
    persona_in_prompt: bool = False
    ranking: Ranking = "embedding"
    shots_from: ShotSource = "own"

    @property
    def adapter_names(self) -> tuple[str, ...]:
        """The names of its adapters, in order."""
        return tuple(adapter.name for adapter in self.adapters)


@dataclass(frozen=True, slots=True)
class Retrieval:
    """Which train exchanges a prompt shows: the `count` first ones of `source` by `ranking`; none with a count of 0."""

    count: int = 0
    ranking: Ranking = "embedding"
    source: ShotSource = "own"

    def shown_by(self, composition: AdapterComposition) -> AdapterComposition:
        """Return a composition with these exchanges in its prompt, and otherwise as it is."""
        return replace(composition, shots=self.count, ranking=self.ranking, shots_from=self.source)


@dataclass(frozen=True, slots=True)
class MethodPlan:
    """The adapters a method needs and, for each persona, the compositions ("arms") it may answer with.

    The first arm is the default. Another arm is chosen when its mean score on the persona's **val** items is better by more
    than `margin_se` standard errors of the paired difference, and more where there are several others (`evaluation/select.py`); with one
    arm there is nothing to choose. `arms_may_lack` says that the method is still itself when some of its arms were never trained.
    `arms_of` are methods with retrieval whose composition, once it is chosen, is one more arm.
    Of several `retrievals`, one is chosen for the whole study, the one with the best mean over the personas on val, each answered with the
    arm that was chosen without any.
    """

    method: str
    adapters: tuple[AdapterSpec, ...]
    arms_by_persona: tuple[tuple[str, tuple[AdapterComposition, ...]], ...]
    margin_se: float = 0.0
    arms_may_lack: bool = False
    retrievals: tuple[Retrieval, ...] = ()
    arms_of: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Route:
    """Which composition a method answers a persona with, after selection on val. `seed` counts the trainings of a study, from 0."""

    method: str
    persona_id: str
    composition: AdapterComposition
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """What one composition said to one item, and every metric of it."""

    composition_key: str
    item_id: str
    persona_id: str
    split: Split
    text: str
    scores: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class EvaluationRow:
    """A method's answer to one test item after one training: all the comparison reads. `adapters`: those it could choose for the person."""

    method: str
    persona_id: str
    cluster: int
    item_id: str
    prompt: str
    reference: str
    text: str
    scores: Mapping[str, float]
    seed: int = 0
    adapters: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Criterion:
    """A line of a gate's verdict. Numbers are shares where `percent`, else in the metric's unit; gains are positive where it is better."""

    name: str
    value: float
    threshold: float
    passed: bool
    ci_low: float | None
    ci_high: float | None
    explanation: str
    percent: bool = True

    def format(self, number: float) -> str:
        """Return one of the numbers as text."""
        return f"{100 * number:.2f}" if self.percent else f"{number:.3f}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The gate's answer for one rung of the ladder of hyper-parameters. `notes` say how far it can be trusted."""

    rung: str
    adapter: str
    criteria: tuple[Criterion, ...]
    n_personas: int
    n_items: int
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every criterion passed."""
        return all(c.passed for c in self.criteria)

    @property
    def gain(self) -> float:
        """Mean similarity minus unified's, on the same items."""
        return next(c.value for c in self.criteria if c.name == "above_unified")


@dataclass(frozen=True, slots=True)
class TrainedAdapter:
    """What is known of an adapter once its weights are in the store: they are `weights_sha256`, and other machines find them at `uri`."""

    key: str
    name: str
    spec: AdapterSpec
    steps: int
    train_tokens: int
    seconds: float
    first_loss: float
    last_loss: float
    n_bytes: int
    run_id: str | None = None
    uri: str | None = None
    weights_sha256: str | None = None


@dataclass(frozen=True, slots=True)
class LearningCurve:
    """An adapter's mean loss in nats per response token: on train at every optimiser step, on val after every epoch."""

    split: Split
    losses: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try at a training group, or at a shard of an evaluation.

    `state` is running, done, out_of_memory, crashed, lost, cancelled or failed.
    """

    group: str
    number: int
    micro_batch: int
    state: str
    detail: str = ""
    peak_memory_bytes: int | None = None
