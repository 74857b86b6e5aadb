"""What the steps of a study record about it besides its data, clusters, adapters and answers: one frozen value per kind.

A study store keeps at most one value of each kind per study (`StudyStore.metadata` and `save_metadata`); `stores/metadata_kinds.py` lists
the kinds. Two of them stand beside the computation that makes them: `persona_signal.measure.PersonaSignal` and `gate.power.Power`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from clusterlora.recipe import Recipe
from clusterlora.settings import Rung
from clusterlora.values import AdapterComposition, AdapterSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """The code, data and base model a study was last prepared with; `git_revision` is None outside a checkout."""

    clusterlora_version: str
    git_revision: str | None
    data_digest: str
    base_revision: str
    n_personas: int
    n_dialogues: int
    n_dialogues_left_out: int = 0
    n_dialogues_losing_turns: int = 0
    n_base_tokens: int | None = None
    """Tokens of the base model's vocabulary, which a uniform guess chooses from; None for a study of an earlier version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataWarnings:
    """What was said, before anything was trained, against the study's models and settings on its data."""

    of_models: tuple[str, ...] = ()
    """Sentences about how base and embedding model fit the data, measured when the study was prepared first."""
    of_dialogues: tuple[str, ...] = ()
    """Sentences about dialogues that are left out, shortened or asked otherwise than they stand in the data."""

    @property
    def sentences(self) -> tuple[str, ...]:
        """All of them."""
        return self.of_models + self.of_dialogues


@dataclass(frozen=True, slots=True, kw_only=True)
class MeanTokens:
    """Mean tokens of a study's dialogues and items, by its base model's tokenizer, on a sample of its people."""

    dialogue: float
    """A whole train dialogue, system text and control tokens included, as often as the template's rendering repeats it."""
    prompt: float
    """What is read before one answer."""
    response: float
    """One answer of the data."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Seconds that one worker takes for a unit of work."""

    train_alone: float
    """Per token, forward and backward, one adapter with the recipe's batch."""
    train_together: float
    """Per token of each adapter, `n_together` adapters in one pass."""
    n_together: int
    read: float
    """Per token of a prompt, or of a reference whose likelihood is computed."""
    write: float
    """Per token that is generated."""
    embed: float
    """Per text that the embedding model reads."""
    load: float
    """To load the base model, which every run does."""
    warm: float = 0.0
    """To load the embedding model and give the first answers, which every run does that scores some."""
    labels: float = 1.0
    """Where an answer is one of a few labels: the seconds in which all of them are scored, over those in which one is read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """What some seconds of a study's own work showed on one worker: the ground of the expected durations."""

    lengths: MeanTokens
    rates: Rates
    device: str
    seconds: float
    """What the probe itself took."""
    begin: float | None = None
    """Seconds that the study's runs so far took to begin on a free worker, and their ends to be noticed, on average; None before one."""
    n_begun: int = 0
    """Runs of which `begin` is the mean."""
    ending: float = 1.0
    """What comparison and registry of this installation's former studies took, over what was foreseen of them."""


@dataclass(frozen=True, slots=True)
class Workers:
    """Workers that were there for trainings when the study was last started, and shards as decided when it was started first."""

    n: int
    n_shards: int = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """How many people, and dialogues of each, a study that may take so many minutes was left after its probe: the first ones.

    `whole` and `expected` are the seconds that it was expected to take before and after; `fits`: the latter are no more than it may.
    """

    of_personas: int
    n_personas: int
    train: int
    val: int
    test: int
    whole: float
    expected: float
    fits: bool


@dataclass(frozen=True, slots=True)
class TrialRecipe:
    """A recipe to try, and what cluster adapters then start from."""

    recipe: Recipe
    init: Literal["base", "unified"]


@dataclass(frozen=True, slots=True)
class TuningRound:
    """What a round of a method's tuning showed on `n_personas` people.

    `losses` are pairs (number of the recipe, mean val loss over these people in nats per response token); None where training diverged.
    """

    method: str
    n_personas: int
    losses: tuple[tuple[int, float | None], ...]


@dataclass(frozen=True, slots=True)
class Tuning:
    """The recipes that a study tries, its own first, and the steps so far: in each, one round of every method whose turn it was."""

    recipes: tuple[TrialRecipe, ...]
    steps: tuple[tuple[TuningRound, ...], ...] = ()

    def rounds(self, method: str) -> tuple[TuningRound, ...]:
        """Return the rounds of a method, in order."""
        return tuple(one for step in self.steps for one in step if one.method == method)


@dataclass(frozen=True, slots=True)
class TrackerPage:
    """The address of the study's parent run in the tracker's UI; None where nothing is tracked."""

    address: str | None


@dataclass(frozen=True, slots=True)
class TruthAgreement:
    """How well the clusters match the planted ones of synthetic data: 1 is the same partition, 0 what chance gives."""

    adjusted_rand_index: float


@dataclass(frozen=True, slots=True)
class ReferencePoints:
    """What is scored on the headline metric without any personalisation.

    `floor`: another persona's reference or, of a likelihood, a uniform guess over the base's tokens. `floor_same_prompt`: another persona's
    reference for the most similar prompt; None where there is no such score. `measured_on` is the digest of the data, personas and model
    settings they belong to.
    """

    floor: float | None = None
    floor_same_prompt: float | None = None
    measured_on: str = ""


Choice = Literal["stop", "continue", "retry"]


@dataclass(frozen=True, slots=True)
class Decision:
    """A person's decision on a refused gate. `rung` is what to try with the choice `retry`; `by` is empty when nobody gave a name.

    `at` is the moment of recording (ISO 8601, UTC).
    """

    choice: Choice
    rung: Rung | None = None
    by: str = ""
    at: str = ""

    def __str__(self) -> str:
        what = {"stop": "stop", "continue": "continue anyway", "retry": f"retry with {self.rung and changes_of(self.rung)}"}[self.choice]
        return f"{what}, decided by {self.by or 'somebody who gave no name'}, {self.at}"


def changes_of(rung: Rung) -> str:
    """Return the settings that a rung changes, for people."""
    parts = {"learning rate": rung.learning_rate, "epochs": rung.epochs, "start": rung.init}
    return ", ".join(f"{name} {value}" for name, value in parts.items() if value is not None) or rung.name


@dataclass(frozen=True, slots=True)
class GateDecisions:
    """Every decision on the study's gate, in order."""

    decisions: tuple[Decision, ...] = ()


@dataclass(frozen=True, slots=True)
class Refinement:
    """How many rounds of refinement count as done; a round in which nobody moves ends them all."""

    rounds_done: int = 0


@dataclass(frozen=True, slots=True)
class ImportedAdapters:
    """The adapters brought in from elsewhere, as the hash of configuration and weights of each: everybody's, by cluster, by persona."""

    weights_by_cluster: tuple[tuple[int, str], ...] = ()
    unified_weights: str | None = None
    weights_by_persona: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class ImportedScores:
    """Scores that other scripts left: by file, metric and persona. They are shown beside the results and are part of no statistic."""

    scores_by_file: Mapping[str, Mapping[str, Mapping[str, float]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodScore:
    """A method on the headline metric, in its units: mean over personas with its 95 % interval, and the difference to the reference, which
    with its interval and outcome is None for the reference itself, and where there is none."""

    method: str
    mean: float
    mean_low: float
    mean_high: float
    difference: float | None
    ci_low: float | None
    ci_high: float | None
    n_personas: int
    n_items: int
    outcome: str | None = None


@dataclass(frozen=True, slots=True)
class ComparisonSummary:
    """What the comparison of the methods found: its champion, if there is one, the sentence that says so, and every method's score.

    `gate_refused`: the gate judged, and no rung passed. `claims_personalisation`: the sentence says that people gain because of who they
    are, as the champion beats both the reference and the control that tells. `reference` is the method that differences are to.
    """

    champion: str | None
    sentence: str
    scores: tuple[MethodScore, ...] = ()
    gate_refused: bool = False
    claims_personalisation: bool = False
    reference: str = "unified"

    @property
    def beats_reference(self) -> bool:
        """Whether the champion is shown to beat the reference, rather than being it."""
        champion = self.score(self.champion) if self.champion is not None else None
        return champion is not None and champion.difference is not None

    def score(self, method: str) -> MethodScore | None:
        """Return the score of one method; None when it was not compared."""
        return next((score for score in self.scores if score.method == method), None)


@dataclass(frozen=True, slots=True)
class RegisteredChampion:
    """The model version that answers as the champion does, by its URI in the registry, and its method."""

    uri: str
    method: str = ""


@dataclass(frozen=True, slots=True)
class ChampionAdapter:
    """An adapter of the study that a refresh goes on from: what its method called it, its cache key, and what it was."""

    label: str
    key: str
    spec: AdapterSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class RefreshStart:
    """What a refresh goes on from, recorded when it is prepared.

    `routes` are the champion's compositions by person, of the labels of `adapters`; `default` answers everybody else. `members` are its
    clusters and `rung` the one that its gate decided for.
    """

    study: str
    method: str
    adapters: tuple[ChampionAdapter, ...]
    routes: tuple[tuple[str, AdapterComposition], ...]
    default: AdapterComposition
    algorithm: str
    members: tuple[tuple[str, ...], ...]
    rung: Rung


@dataclass(frozen=True, slots=True, kw_only=True)
class News:
    """What a refresh knows that the champion has not seen, as (person, dialogue ids), and what was left out of the new data and why."""

    dialogues: tuple[tuple[str, tuple[str, ...]], ...]
    newcomers: tuple[str, ...] = ()
    """People whom the champion does not know."""
    old_test: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Test dialogues of before that are answered again, as many as there are new ones, so that forgetting shows."""
    n_read: int = 0
    n_repeated: int = 0
    """Dialogues of the file that were there already, or stood in it twice."""
    n_left_out: int = 0
    """Dialogues that a split would have shared with another."""


@dataclass(frozen=True, slots=True)
class WatchedFile:
    """A file or folder that was looked at for a study's next refresh, by the SHA-256 of its content then.

    `done`: nothing in it is left to learn and test. Until then `n_asked` says how often a refresh was asked for, and `asked_at` when last,
    in seconds since 1970.
    """

    path: str
    digest: str
    done: bool = False
    n_asked: int = 0
    asked_at: float = 0.0


@dataclass(frozen=True, slots=True)
class WatchedFiles:
    """What is known of the files that are watched for a study, one per path."""

    files: tuple[WatchedFile, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Regrouping:
    """How a refresh found the clusters of before: who is nearest to another cluster than their own, as (person, own, nearest)."""

    moved: tuple[tuple[str, int, int], ...]
    n_personas: int
    anew: bool
    """Whether everybody was clustered anew: cluster adapters are then trained from the start, and the gate is asked where it can judge."""
    outdated: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """(Person, dialogue ids) from before somebody changed, when all were clustered anew here or earlier: neither learnt nor asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shift:
    """The challenger's score minus the champion's on the headline metric, as an interval over people."""

    champion: float
    challenger: float
    difference: float
    ci_low: float
    ci_high: float
    n_items: int
    n_personas: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RefreshOutcome:
    """Whether the champion moves, to which method and why; scores on the new items, and on old ones.

    `elsewhere` says where the alias stayed, if somebody had moved it while the study ran.
    """

    moved: bool
    challenger: str
    reason: str
    on_new: Shift | None
    on_old: Shift | None
    elsewhere: str | None = None


@dataclass(frozen=True, slots=True)
class Forgotten:
    """Who left the study: the keyed digests of their ids (`pseudonyms.pseudonym`). They are left out whenever the data are read."""

    pseudonyms: tuple[str, ...] = ()
