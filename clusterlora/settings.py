"""All settings of a study, as frozen values. `config.py` reads them from presets, TOML, flags and forms.

Bounds are `annotated_types`, understood by pydantic and by the Prefect form; the string under a field is its help text.
"""

import re
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Len

from clusterlora.errors import BadSettings
from clusterlora.method_settings import AssignmentSettings, JudgeSettings, MergeSettings, RefreshSettings, RetrievalSettings
from clusterlora.recipe import MOST_EPOCHS, MOST_LEARNING_RATE, MOST_ROWS, MOST_SEED, Recipe

Dtype = Literal["float32", "bfloat16"]
Quantisation = Literal["none", "nf4", "int8"]
DeviceMap = Literal["none", "auto"]
Task = Literal["text", "label", "rating"]

HOME_PROMPT = "You are a smart home assistant."
"""System prompt of the synthetic people, whose dialogues are about homes."""

NEUTRAL_PROMPT = "You are a helpful assistant."
"""System prompt of everybody else's dialogues, where the data bring none."""

EMBEDDED_BASE = "homelm"
"""The base model inside this package, which knows nothing but the synthetic people's talk about homes."""

MOST_PEOPLE, MOST_DIALOGUES, MOST_TOKENS, MOST_MINUTES, MOST_SHARDS = 1_000_000, 1_000_000, 1_048_576, 1_000_000, 1024
"""More people, dialogues of a person, tokens of a sequence, minutes or shards of a study are a slip of the hand."""
LEAST_LENGTH, LEAST_ANSWER = 32, 4
"""Tokens of a sequence and of an answer below which nothing can be asked or said."""

_FORM = {"extra": "forbid", "use_attribute_docstrings": True}


@dataclass(frozen=True, slots=True, kw_only=True)
class SyntheticSettings:
    """Synthetic personas. The three shares determine how the choices in an answer are made."""

    __pydantic_config__ = _FORM

    cluster_sizes: tuple[Annotated[int, Ge(1), Le(MOST_PEOPLE)], ...] = (16, 52, 25, 35, 72)
    """Personas in each planted cluster."""
    dialogues: Annotated[int, Ge(3), Le(MOST_DIALOGUES)] = 50
    """Dialogues per persona."""
    cluster_share: Annotated[float, Ge(0), Le(1)] = 0.5
    """Share of the personal choices in an answer that the persona's cluster determines."""
    persona_share: Annotated[float, Ge(0), Le(1)] = 0.25
    """Share of the personal choices that the persona determines."""
    noise_share: Annotated[float, Ge(0), Le(1)] = 0.1
    """Share of the personal choices drawn at random in each dialogue. The remaining choices follow a rule common to all."""
    seed: Annotated[int, Ge(0), Le(MOST_SEED)] = 0
    """Seed of the generator."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSettings:
    """Where the dialogues come from and how they are split."""

    __pydantic_config__ = _FORM

    source: str = "synthetic"
    """Data source: synthetic, edgewise, table or lamp."""
    task: Task = "text"
    """What people are answered with: text, which is generated; or, from the sources table and lamp, a label (one of a few) or a rating (a
    number, one of a few), which is chosen by its likelihood."""
    labels: tuple[str, ...] = ()
    """The labels or ratings to choose from. Empty: all of the train split."""
    path: str | None = None
    """File (table), folder or hub dataset id (edgewise). Not used by synthetic."""
    columns: tuple[tuple[str, str], ...] = ()
    """Pairs (our column, your column) for a table whose columns have other names."""
    splits: str | None = None
    """JSON file with the train, val and test dialogues, for example edgesplits.json; empty: split by a stable hash."""
    personas: Annotated[int, Ge(2), Le(MOST_PEOPLE)] | None = None
    """Use the first N personas at most; empty: all."""
    train: Annotated[int, Ge(1), Le(MOST_DIALOGUES)] = 30
    """Dialogues per persona to train on."""
    val: Annotated[int, Ge(1), Le(MOST_DIALOGUES)] = 10
    """Dialogues per persona for choices: gate, routing, hyper-parameters."""
    test: Annotated[int, Ge(1), Le(MOST_DIALOGUES)] = 10
    """Dialogues per persona for the final scores only."""
    dialogues: Literal["asked", "all"] = "asked"
    """Dialogues of a persona that are used: as many as asked in train, val and test, or all, in these proportions."""
    split_seed: Annotated[int, Ge(0), Le(MOST_SEED)] = 0
    """Seed of the hash by which dialogues are split."""
    permute_seed: Annotated[int, Ge(0), Le(MOST_SEED)] | None = None
    """Exchange everybody's dialogues at random, with this seed, before they are split: a study in which nothing is personal
    (`clusterlora study permute`). Empty: everybody keeps their own."""
    canaries: Annotated[int, Ge(1), Le(1000)] | None = None
    """Plant so many random codes of invented people in train dialogues (`clusterlora study privacy`). Empty: none."""
    on_problem: Literal["refuse", "skip"] = "refuse"
    """Dialogues that the base model cannot be asked, and people with too few for every split: refuse names all, skip leaves them out."""
    on_misfit: Literal["refuse", "warn"] = "refuse"
    """An embedding model that does not know the tokens of the answers that the headline metric compares: refuse it when the study is
    prepared, or warn and go on. A base model is chosen by name, so what speaks against it is always a warning."""
    synthetic: SyntheticSettings = SyntheticSettings()
    """The generator's parameters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSettings:
    """The frozen base, its prompt and the embedding model of the headline metric."""

    __pydantic_config__ = _FORM

    base: str | None = None
    """homelm (embedded, knows smart-home talk only), smollm2-135m (from its wheel), a hub id such as Qwen/Qwen2.5-0.5B-Instruct, or a
    local folder. Empty: homelm for synthetic people; your own data need a choice."""
    embedding: str = "minilm"
    """minilm (from its wheel), a sentence-transformers hub id, or a local folder."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """One dtype for every method of the study: bfloat16 changes some greedy answers. auto decides once, on the machine that prepares the
    study: bfloat16 where it computes in it and the base is wide enough to gain from it."""
    quantisation: Quantisation = "none"
    """Hold the frozen base's linear layers in nf4 (4 bits, as QLoRA) or int8 with bitsandbytes: less memory, slower passes, other numbers.
    Adapters stay in float32, and products are computed in model.dtype."""
    device_map: DeviceMap = "none"
    """Where the frozen base is held: none is all of it on a worker's first GPU, or on the CPU; auto spreads its layers over all GPUs that a
    worker sees, for a base that is larger than one of them. Results are the same but for rounding."""
    system_prompt: str | None = None
    """System prompt of every dialogue that does not begin with a system turn of its own. Empty: "You are a smart home assistant." for
    synthetic people, "You are a helpful assistant." for your own data."""
    persona_in_prompt: bool = False
    """Put the persona's description into the system prompt, for every method alike."""
    max_length: Annotated[int, Ge(LEAST_LENGTH), Le(MOST_TOKENS)] | None = None
    """Longest sequence in tokens, answer included. Longer dialogues lose their oldest turns; a quarter is kept for the answer. Empty: 512
    for synthetic people; for your own data what holds 95 % of the train examples whole and the last exchange of every dialogue, if the base
    has the positions and a quarter of the memory where the study is prepared can train it."""
    template_arguments: tuple[tuple[str, str], ...] = ()
    """Pairs (name, value) that the base's chat template is given, values as JSON, for example [["enable_thinking", "true"]]. Where a
    template offers enable_thinking it is false unless it is given here."""
    template_date: str | None = None
    """What a chat template that writes the date takes for today, as YYYY-MM-DD. Empty: the day on which the study is prepared first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusteringSettings:
    """How personas are grouped. Only train dialogues are read."""

    __pydantic_config__ = _FORM

    algorithm: str = "auto"
    """Features of a persona: auto (whichever of the next two predicts held-out train answers best), responses_given_prompts (the manner of
    answering, prompt by prompt), response_residuals (whatever the prompt), responses, responses_discriminant, prompts+responses,
    description, gradient or adapter."""
    k: Annotated[int, Ge(2), Le(MOST_PEOPLE)] | None = None
    """Number of clusters. Empty: the number from 2 to 12 that predicts held-out train answers best and is found again in other
    dialogues; everybody is one cluster, and methods that need clusters are left out, where none predicts enough to be worth having."""
    sizes: tuple[Annotated[int, Ge(1), Le(MOST_PEOPLE)], ...] | None = None
    """Exact cluster sizes in order, which must sum to the number of personas. Empty: free sizes."""
    min_size: Annotated[int, Ge(1), Le(MOST_PEOPLE)] = 3
    """Minimum personas per cluster, if there are enough personas; ignored when `sizes` is set."""
    refinement_rounds: Annotated[int, Ge(0), Le(100)] = 0
    """Rounds after training in which personas move to the cluster that predicts their val answers best. Each round trains again."""
    seed: Annotated[int, Ge(0), Le(MOST_SEED)] = 0
    """Seed of k-means."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """One alternative tried when the gate refuses. Empty fields keep the study's value."""

    __pydantic_config__ = _FORM

    name: Annotated[str, Len(1, 40)]
    """Name of the rung, for example lower-lr."""
    learning_rate: Annotated[float, Gt(0), Le(MOST_LEARNING_RATE)] | None = None
    """Another peak learning rate."""
    epochs: Annotated[int, Ge(1), Le(MOST_EPOCHS)] | None = None
    """Another number of epochs."""
    init: Literal["base", "unified"] | None = None
    """Another start: unified is a warm start from the unified adapter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GateSettings:
    """Criteria that one cluster must meet on its val items before the other clusters are trained."""

    __pydantic_config__ = _FORM

    mean_similarity: Annotated[float, Ge(0), Le(1)] | None = None
    """Mean similarity must exceed this (the mission: 0.83). Empty: no criterion; 'above unified' always is one."""
    worst_persona: Annotated[float, Ge(0), Le(1)] | None = None
    """The worst persona's mean similarity must exceed this (the mission: 0.70). Empty: no criterion."""
    share_improved: Annotated[float, Ge(0), Le(1)] = 0.60
    """At least this share of the personas must score higher than with unified."""
    second_headline: bool = False
    """Cluster 0 must score above unified on evaluation.second_headline, too."""
    above_random_group: bool | None = None
    """The judged cluster must gain more than a random group as large does on its own people, which random_cluster has and is then trained
    at the gate; asked where five points of difference would be shown four times in five. Empty: where random_cluster is compared."""
    later_rungs_luck: Annotated[float, Gt(0), Le(1)] | None = 0.05
    """How often all later rungs of the ladder together may pass by luck: each must improve the share of the personas that a sign test
    at this level, divided by their number, requires; everybody, where none is enough. Empty: every rung must improve share_improved."""
    ladder: tuple[Rung, ...] = (
        Rung(name="lower-lr", learning_rate=2e-4),
        Rung(name="more-epochs", epochs=6),
        Rung(name="warm-start", init="unified"),
    )
    """Alternatives tried in order when the first configuration fails."""
    on_failure: Literal["stop", "ask", "continue"] = "stop"
    """When every rung fails: stop, ask a person and wait for the decision, or continue anyway."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationSettings:
    """One protocol for every method: greedy decoding, the same items, the same metrics."""

    __pydantic_config__ = _FORM

    max_new_tokens: Annotated[int, Ge(LEAST_ANSWER), Le(MOST_TOKENS)] | None = None
    """Maximum tokens of an answer. Empty: 64 for synthetic people; for your own data what holds 95 % of the train answers."""
    batch_size: Annotated[int, Ge(1), Le(MOST_ROWS)] = 64
    """Items per batch, four times as many on a GPU; halved when memory runs out."""
    metrics: tuple[str, ...] = ("embedding_similarity", "nll", "rouge_l", "prompt_tokens")
    """Metrics computed for every answer. Left out with data.task=label: accuracy, macro_f1, nll and prompt_tokens; with data.task=rating
    mae and rmse before these."""
    headline: str = "embedding_similarity"
    """Headline metric of the gate and the comparison. Left out with data.task=label: accuracy; with data.task=rating: mae."""
    second_headline: str | None = None
    """A second metric for the champion, which must not be shown to be worse than unified on it. Empty: none."""
    selection_metric: str = "nll"
    """The val metric that chooses among a method's arms (routing). nll needs no generation. Left out with labels and ratings: the
    headline."""
    bootstrap_draws: Annotated[int, Ge(100), Le(1_000_000)] = 10_000
    """Draws of the paired bootstrap."""
    equivalence_margin: Annotated[float, Gt(0), Le(1000)] = 1.0
    """Methods whose difference is shown to be smaller than this are called equivalent: points of a percentage, hundredths of any other
    headline's unit, for nll of a nat, which is about a percent of a token's likelihood; for likelihood percent of what unified scores."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeSettings:
    """Where and how the work runs. These settings change no result."""

    __pydantic_config__ = _FORM

    gpu_pool: str = "gpu"
    """Work pool of training and evaluation runs."""
    shards: Annotated[int, Ge(1), Le(MOST_SHARDS)] | None = None
    """Runs into which training and evaluation are divided. Empty: as many as gpu_pool has workers when the study begins, at least 2."""
    micro_batch: Annotated[int, Ge(1), Le(MOST_ROWS)] | None = None
    """Dialogues per forward pass; empty means the whole batch. Halved automatically when memory runs out."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass instead of storing them: less memory, a third more time (bases that
    `engine/families` writes out)."""
    samples: Annotated[int, Ge(1), Le(64)] | None = 2
    """Adapters of each training that answer a val prompt for people to read after epochs (at most every 20 seconds), in its log, in MLflow
    and in `study status --watch`; at the end all do, or 64 of them, in MLflow. Empty: none."""
    gpu_hour_price: Annotated[float, Ge(0), Le(1e6)] | None = None
    """Price of an hour of a GPU, for what the study costs; empty: unknown, and no money is told."""
    cpu_hour_price: Annotated[float, Ge(0), Le(1e6)] | None = None
    """Price of an hour of a process that has no GPU; empty: unknown."""
    currency: Annotated[str, Len(1, 8)] = "EUR"
    """What prices are in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """One configured run of everything."""

    __pydantic_config__ = _FORM

    name: Annotated[str, Len(1, 48)] = "mission"
    """Name of the study: lower-case letters, digits, dot, dash and underscore."""
    methods: tuple[str, ...] = (
        "baseline",
        "unified",
        "per_persona",
        "cluster",
        "selective_routing",
        "random_cluster",
        "swapped_persona",
    )
    """Methods to compare, and the controls that tell why they gain."""
    data: DataSettings = DataSettings()
    """Data source and splits."""
    model: ModelSettings = ModelSettings()
    """Base model, prompt and embedding model."""
    recipe: Recipe = Recipe()
    """Hyper-parameters of every adapter."""
    cluster_init: Literal["base", "unified"] = "base"
    """Initial weights of cluster adapters; unified is a warm start."""
    tune: Annotated[int, Ge(2), Le(64)] | None = None
    """Recipes tried for every method that has adapters of its own: this study's and N - 1 others around it. Each method is then trained by
    the one with the lowest val loss, and its controls by the same. The gate's ladder, which tunes clusters alone, is not climbed. Costs
    about as many trainings as there are rounds: one for 4 recipes, two for 16, three for 64. Empty: nothing is tuned."""
    clustering: ClusteringSettings = ClusteringSettings()
    """How personas are grouped."""
    minutes: Annotated[float, Gt(0), Le(MOST_MINUTES)] | None = None
    """Minutes that the study may take: after its probe, dialogues and people are left out until the rest fits. Empty: all are used."""
    seeds: Annotated[int, Ge(1), Le(100)] = 1
    """Training runs of every adapter, each with another seed; scores are averaged per persona. The first is judged and registered."""
    merging: MergeSettings = MergeSettings()
    """Settings of the method `merge`."""
    retrieval: RetrievalSettings = RetrievalSettings()
    """Settings of the methods `retrieval`, `unified_retrieval`, `cluster_retrieval` and `hybrid_retrieval`."""
    gate: GateSettings = GateSettings()
    """Criteria for the judged cluster: cluster 0 where sizes are given, else the one of at least 8 people nearest the median size."""
    assignment: AssignmentSettings = AssignmentSettings()
    """Measurement of how well new personas are assigned."""
    evaluation: EvaluationSettings = EvaluationSettings()
    """How answers are generated and scored."""
    judge: JudgeSettings = JudgeSettings()
    """Who compares answers for the metric `judge`."""
    refresh: RefreshSettings = RefreshSettings()
    """What this study goes on from, where it is a refresh of another."""
    runtime: RuntimeSettings = RuntimeSettings()
    """Where and how the work runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedModel(ModelSettings):
    """The model settings of a prepared study, with everything decided that `ModelSettings` leaves open."""

    base: str = EMBEDDED_BASE
    dtype: Dtype = "float32"
    system_prompt: str = HOME_PROMPT
    max_length: Annotated[int, Ge(LEAST_LENGTH), Le(MOST_TOKENS)] = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedEvaluation(EvaluationSettings):
    """The evaluation settings of a prepared study: the longest answer is decided."""

    max_new_tokens: Annotated[int, Ge(LEAST_ANSWER), Le(MOST_TOKENS)] = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedStudy(Study):
    """A study as it was prepared: nothing is left to be decided by the machine that computes it. Stores hold studies in this form."""

    model: PreparedModel = PreparedModel()
    evaluation: PreparedEvaluation = PreparedEvaluation()


@dataclass(frozen=True, slots=True)
class Lengths:
    """The longest sequence and the longest answer of a study, in tokens."""

    max_length: int = PreparedModel().max_length
    max_new_tokens: int = PreparedEvaluation().max_new_tokens


def chosen_base(study: Study) -> str:
    """Return the name of a study's base model: the chosen one, or for synthetic people the embedded one.

    Raises:
        BadSettings: own data without a choice; the embedded base answers nothing but smart-home requests.
    """
    if study.model.base is not None:
        return study.model.base
    if study.data.source != "synthetic":
        raise BadSettings(
            f"model.base: not chosen; the embedded {EMBEDDED_BASE} knows the invented smart-home dialogues and no other language or topic, "
            "so your own data need a base model: give a hub id such as --base-model Qwen/Qwen2.5-0.5B-Instruct, smollm2-135m or a local "
            f"folder, or insist with --base-model {EMBEDDED_BASE}"
        )
    return EMBEDDED_BASE


def prepared(study: Study, dtype: Dtype, lengths: Lengths = Lengths()) -> PreparedStudy:
    """Return a study with everything decided; `lengths` are those of a study that leaves them open.

    Raises:
        BadSettings: as `chosen_base`.
    """
    model: dict[str, Any] = {field.name: getattr(study.model, field.name) for field in fields(ModelSettings)}
    evaluation: dict[str, Any] = {field.name: getattr(study.evaluation, field.name) for field in fields(EvaluationSettings)}
    settings: dict[str, Any] = {field.name: getattr(study, field.name) for field in fields(Study)}
    model |= {"base": chosen_base(study), "dtype": dtype}
    if study.model.system_prompt is None:
        model["system_prompt"] = HOME_PROMPT if study.data.source == "synthetic" else NEUTRAL_PROMPT
    if study.model.max_length is None:
        model["max_length"] = lengths.max_length
    if study.evaluation.max_new_tokens is None:
        evaluation["max_new_tokens"] = lengths.max_new_tokens
    settings |= {"model": PreparedModel(**model), "evaluation": PreparedEvaluation(**evaluation)}
    return PreparedStudy(**settings)


STUDY_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,47}")
"""Study names become folder, experiment and model names: what this matches is safe as each of them."""


def check_study_name(name: str) -> str:
    """Return the name of a study unchanged.

    Raises:
        BadSettings: it could not be a folder, an experiment and a model name alike.
    """
    if not STUDY_NAME.fullmatch(name):
        raise BadSettings(
            f"study name {name!r} is not allowed; use 1 to 48 lower-case letters, digits, dots, dashes and underscores, "
            "beginning with a letter or digit"
        )
    return name
