"""Requests to deployments: one frozen value per kind of run, the same in the form, in the run's parameters and where it is executed."""

import socket
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le

from clusterlora import __version__
from clusterlora.errors import BadSettings
from clusterlora.method_settings import MergeSettings
from clusterlora.recipe import ENGINE_VERSION
from clusterlora.settings import Study

_FORM = {"extra": "forbid", "use_attribute_docstrings": True}

_AVERAGE = MergeSettings()
_DEFAULT = Study()

VERSION = f"{__version__}, engine {ENGINE_VERSION}"
"""What trains and answers here. Workers of two versions would give one study adapters and answers that cannot be compared."""

EvaluationPart = Literal["probe", "power", "baseline", "gate", "tuning", "choices", "test"]


@dataclass(frozen=True, slots=True)
class TrainingGroup:
    """Adapters trained together in one run."""

    __pydantic_config__ = _FORM

    name: str
    """Stable across relaunches; attempts are counted under it."""
    title: str
    """Readable name, for example `cluster 00`."""
    adapters: tuple[str, ...]
    """Names of the study's adapters to train."""
    rung: str = "own"
    """The rung of the gate's ladder whose plan has them."""
    step: int | None = None
    """The step of the tuning whose trials they are; empty for the study's own adapters."""
    methods: tuple[str, ...] = ()
    """The methods that train them; the run is tagged with them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainRequest:
    """One attempt at training a group of adapters of an existing study."""

    __pydantic_config__ = _FORM

    study_name: str
    """A study that exists."""
    group: TrainingGroup
    """The adapters."""
    micro_batch: Annotated[int, Ge(1)]
    """Dialogues per forward pass. The optimiser's batch stays the recipe's."""
    attempt: Annotated[int, Ge(1)] = 1
    """Number of this attempt."""
    version: str = VERSION
    """The version of clusterlora that asks."""

    @property
    def run_name(self) -> str:
        """`train · cluster 00 · mission · micro-batch 2 · attempt 1`."""
        return f"train · {self.group.title} · {self.study_name} · micro-batch {self.micro_batch} · attempt {self.attempt}"


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationRequest:
    """One shard of a part of a study's items to answer and score. Items the study already has answers to are skipped."""

    __pydantic_config__ = _FORM

    study_name: str
    """A study that exists."""
    part: EvaluationPart = "test"
    """`probe` measures how long trainings and answers take; `power` answers a cluster's val items with the bare base model, `gate` with the
    adapters on trial; `test` lets every method choose on val, then answers test; `baseline` answers what `test` will ask of the bare base
    model; `choices` answers the val items by which methods choose one retrieval for everybody; `tuning` those by
    which they choose a recipe."""
    shard: Annotated[int, Ge(1), Le(10_000)] = 1
    """This run's share of the personas, counted from 1."""
    shards: Annotated[int, Ge(1), Le(10_000)] = 1
    """How many runs share the personas."""
    rung: str | None = None
    """Which rung of the ladder, for the gate."""
    step: Annotated[int, Ge(1)] | None = None
    """Which step of the tuning, for `tuning`."""
    cluster: Annotated[int, Ge(0)] | None = None
    """Whose val items, for power and gate. Empty: the cluster that the gate judges."""
    version: str = VERSION
    """The version of clusterlora that asks."""

    @property
    def run_name(self) -> str:
        """`evaluate · test 1/2 · mission`, or `evaluate · gate 1/1 · mission · lower-lr` for a rung of the ladder."""
        name = f"evaluate · {self.part} {self.shard}/{self.shards} · {self.study_name}"
        name = f"{name} · step {self.step}" if self.step else name
        return f"{name} · {self.rung}" if self.rung else name


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeRequest:
    """The personal adapters of a study merged per cluster."""

    __pydantic_config__ = _FORM

    study_name: str
    """A study whose personal adapters are trained."""
    merging: MergeSettings = _AVERAGE
    """How they are merged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PermutationRequest:
    """A study to be repeated with everybody's dialogues exchanged at random."""

    __pydantic_config__ = _FORM

    study: Study = _DEFAULT
    """The study; its own data and settings, but for whose dialogues are whose."""
    times: Annotated[int, Ge(1), Le(200)] = 20
    """How often, each time with another seed; NAME-null-01, NAME-null-02, ... are studies of their own."""

    @property
    def run_name(self) -> str:
        """`mission · 20 times`."""
        return f"{self.study.name} · {self.times} times"


@dataclass(frozen=True, slots=True, kw_only=True)
class RefreshRequest:
    """A study's champion, and the dialogues that came since."""

    __pydantic_config__ = _FORM

    study_name: str
    """A finished study, the first of its family: not one of its refreshes."""
    path: str
    """The new dialogues, or all: a .jsonl, .csv or .parquet file, as the worker of pool cpu sees it. What is known already counts once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacyRequest:
    """A study whose shared adapters and champion are measured for what they have memorised."""

    __pydantic_config__ = _FORM

    study_name: str
    """A compared study. For the exposure of canaries, run a copy NAME-canaries with data.canaries set first."""
    prompts: Annotated[int, Ge(1), Le(100_000)] = 300
    """Test prompts, and train prompts, that each adapter answers at most."""
    words: Annotated[int, Ge(2), Le(1000)] = 8
    """Words in a row of a train answer that count as a repetition."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgetRequest:
    """A person who leaves, by a digest: what is asked of a run stays in Prefect, and so the id must not be there."""

    __pydantic_config__ = _FORM

    digest: str
    """The keyed digest of the person's id, which `clusterlora persona forget ID --dry-run` prints first."""
    studies: tuple[str, ...] = ()
    """Only these studies, each with its refreshes; empty: all."""
    remove_backups: bool = False
    """Whether the backups made here that have the person are deleted, too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AssignmentRequest:
    """People who are new to a study, with a few dialogues each: given as rows or as a path, one of the two."""

    __pydantic_config__ = _FORM

    study_name: str
    """A study that has trained unified and all clusters."""
    rows: tuple[dict[str, Any], ...] = ()
    """The dialogues themselves, one object each, up to some hundred: {"persona_id": "ana", "prompt": "Make it cosy", "response":
    "Warm light at 40 %, Ana."} or {"persona_id": "ana", "messages": [{"role": "user", "text": "..."}, {"role": "assistant",
    "text": "..."}]}. They travel with the run, so workers need not share a disk."""
    path: str | None = None
    """Instead of rows, a .jsonl, .csv or .parquet file, or an edgewise folder, as the worker of pool gpu sees it."""


def refuse_other_version(request: TrainRequest | EvaluationRequest) -> None:
    """Check that a request comes from this version. Raises BadSettings where another one asks."""
    if request.version != VERSION:
        raise BadSettings(
            f"the worker on {socket.gethostname()} has clusterlora {VERSION}, and study {request.study_name} is run by {request.version}; "
            "update the older checkout and restart its worker, or stop it, then run the study again"
        )
