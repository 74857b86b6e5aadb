"""Choose for people who are new to a study whether one of its clusters or unified should answer them."""

import json
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from clusterlora.adapters.compositions import combined_weights
from clusterlora.adapters.stored import stored_folder, stored_weights
from clusterlora.data.duplicates import normalised_text
from clusterlora.data.load import fitted, read
from clusterlora.data.problems import Problems
from clusterlora.data.prompts import items
from clusterlora.errors import BadData, UnknownName
from clusterlora.evaluation.answer import Answerer, AnswerRequest
from clusterlora.evaluation.assign import Choice, choose
from clusterlora.evaluation.dialogues import dialogue_means, dialogue_numbers
from clusterlora.evaluation.markdown import markdown_table
from clusterlora.models.model_cache import base_model, embedder
from clusterlora.planning.ladder import GATED, REFERENCE
from clusterlora.planning.study_state import StudyState, read_state
from clusterlora.planning.work_plan import WorkPlan, cluster_adapters, trained_adapters, work_plan
from clusterlora.ports.run_log import RunLog
from clusterlora.ports.stores import Stores
from clusterlora.settings import DataSettings, PreparedStudy
from clusterlora.stages.base_checks import fit_of
from clusterlora.stages.keep import expose
from clusterlora.values import AdapterComposition, AdapterSpec, Persona, WeightedAdapter

HEADER = ("persona", "dialogues", "nearest cluster", "NLL gain", "standard errors", "answered by")
NOTE = (
    "NLL gain: nats per response token that the nearest cluster predicts the dialogues better than unified. Whoever leaves unified gains "
    "more than 1 standard error by it, and more than that where there are several clusters to choose from; one dialogue has no standard "
    "error, however many turns it has, so it moves nobody."
)

_BY_LINE = "edgewise"
"""The source whose persona ids are line numbers, which identify nobody across files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """Who answers a new persona, why, and where that adapter is.

    `nll` has the mean negative log-likelihood per response token under every adapter that could be chosen. `model` is the adapter's name
    in the model registry, which has it once the study has finished; None before.
    """

    persona_id: str
    n_dialogues: int
    choice: Choice
    nll: tuple[tuple[str, float], ...]
    adapter: str
    folder: Path
    model: str | None


def assign(study_name: str, data: DataSettings, stores: Stores, log: RunLog) -> tuple[Assignment, ...]:
    """Return for every persona of the data whether unified or a cluster should answer; all their dialogues count.

    Nothing is stored.

    Raises:
        BadData: the data cannot be read, are empty, or have a persona that is in the study already.
        UnknownName: there is no such study, or it has not trained unified and all clusters.
    """
    state = read_state(study_name, stores)
    plan = work_plan(state)
    names = _adapters(state, plan)
    personas = _newcomers(state, data)
    losses = _losses(state.settings, plan, personas, names, stores, log)
    finished = state.status == "finished"
    choices = {persona.id: choose(losses[persona.id]) for persona in personas}
    adapter_of = {p: names[0 if choice.cluster is None else choice.cluster + 1] for p, choice in choices.items()}
    folders = {
        name: expose(stores, study_name, plan.specs[name], stored_folder(stores, plan.keys[name])) for name in set(adapter_of.values())
    }
    return tuple(
        Assignment(
            persona_id=persona_id,
            n_dialogues=len(losses[persona_id]),
            choice=choice,
            nll=tuple(zip(names, losses[persona_id].mean(axis=0).tolist(), strict=True)),
            adapter=adapter_of[persona_id],
            folder=folders[adapter_of[persona_id]],
            model=_model(study_name, plan.specs[adapter_of[persona_id]]) if finished else None,
        )
        for persona_id, choice in choices.items()
    )


def _model(study_name: str, spec: AdapterSpec) -> str | None:
    """Return the name of an adapter in the model registry; None for one that another study registered."""
    return None if spec.kept else f"{study_name}-{spec.label}"


@contextmanager
def data_from(rows: Sequence[Mapping[str, Any]], path: str | None) -> Generator[DataSettings]:
    """Yield the settings that read dialogues from rows of a table (through a temporary file), or from a file or folder at a path.

    Raises:
        BadData: both are set, or neither.
    """
    if bool(rows) == bool(path):
        raise BadData(f"dialogues are given {'twice, as rows and as path' if rows else 'neither as rows nor as path'}; give one of the two")
    if path:
        yield data_at(path)
        return
    with TemporaryDirectory() as folder:
        file = Path(folder) / "rows.jsonl"
        file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        yield data_at(str(file))


def data_at(path: str, source: str | None = None, columns: tuple[tuple[str, str], ...] = ()) -> DataSettings:
    """Return the settings that read a path: a file as a table, a folder as edgewise, unless the source is named."""
    return DataSettings(source=source or (_BY_LINE if Path(path).is_dir() else "table"), path=path, columns=columns)


def cells(assignment: Assignment) -> tuple[str, ...]:
    """Return a persona's row under `HEADER`, as text."""
    choice = assignment.choice
    errors = choice.gain_in_standard_errors
    return (
        assignment.persona_id,
        str(assignment.n_dialogues),
        str(choice.nearest),
        f"{choice.gain:+.3f}",
        "-" if errors is None else f"{errors:+.1f}",
        assignment.adapter,
    )


def record(assignment: Assignment) -> dict[str, Any]:
    """Return a persona's assignment as JSON values."""
    choice = assignment.choice
    return {
        **asdict(choice),
        "persona_id": assignment.persona_id,
        "n_dialogues": assignment.n_dialogues,
        "gain_in_standard_errors": choice.gain_in_standard_errors,
        "nll": dict(assignment.nll),
        "adapter": assignment.adapter,
        "folder": str(assignment.folder),
        "model": assignment.model,
    }


def markdown(study_name: str, assignments: Sequence[Assignment]) -> str:
    """Return the table of the assignments and that of the adapters' folders."""
    adapters = {a.adapter: a for a in assignments}.values()
    folders = [(a.adapter, a.model or "-", str(a.folder)) for a in adapters]
    return (
        f"# New personas of {study_name}\n\n"
        + markdown_table(HEADER, [cells(a) for a in assignments], right=(False, True, True, True, True, False))
        + f"\n{NOTE}\n\n"
        + markdown_table(("adapter", "registered model", "PEFT folder"), folders, right=(False, False, False))
    )


def _adapters(state: StudyState, plan: WorkPlan) -> tuple[str, ...]:
    """Return unified and the clusters' adapters in order, all of them trained."""
    if GATED not in plan.methods:
        raise UnknownName(
            f"study {state.name} has no cluster adapters, its methods are {', '.join(state.settings.methods)}; add cluster to them"
        )
    names = (REFERENCE, *cluster_adapters(plan))
    trained = trained_adapters(state, plan)
    missing = [name for name in names if name not in trained]
    if missing:
        raise UnknownName(f"study {state.name} has not trained {', '.join(missing)}; let it finish first, or choose another study")
    return names


def _newcomers(state: StudyState, data: DataSettings) -> tuple[Persona, ...]:
    """Return the people of the data, with each of their distinct dialogues."""
    source = data.path or data.source
    problems = Problems()
    people = fitted(read(data), fit_of(state.settings, base_model(state.settings.model).tokenizer), data, problems).dataset.personas
    problems.raise_any()
    if data.source == _BY_LINE:
        people = tuple(replace(p, id=p.id.replace("persona", "new", 1)) for p in people)
    study_ids = set(state.dataset.ids)
    for persona in people:
        if persona.id in study_ids:
            raise BadData(f"{source}: persona {persona.id!r} is in study {state.name} already; give somebody new another id, or remove it")
        if not persona.dialogues:
            raise BadData(f"{source}: persona {persona.id!r} has no dialogues; give at least one exchange, or remove the persona")
    if not people:
        raise BadData(f"{source}: nobody is in it; give at least one persona with one exchange")
    # A file's splits have no meaning for new people, and two dialogues with the same words are one.
    return tuple(
        replace(p, dialogues=tuple(replace(d, split="train") for d in {normalised_text(d): d for d in p.dialogues}.values()))
        for p in people
    )


def _losses(
    study: PreparedStudy, plan: WorkPlan, personas: Sequence[Persona], names: Sequence[str], stores: Stores, log: RunLog
) -> dict[str, np.ndarray]:
    """Return by persona the negative log-likelihood of each dialogue under each adapter, a mean over its turns."""
    examples = {p.id: items(study.model, p, "train") for p in personas}
    compositions = {name: AdapterComposition((WeightedAdapter(name),)) for name in names}
    weights = {
        name: combined_weights(composition.adapters, lambda adapter: stored_weights(stores, plan.keys[adapter]))
        for name, composition in compositions.items()
    }
    requests = [AnswerRequest(name, item) for its in examples.values() for item in its for name in names]
    log.phase("read examples", total=len(requests), unit="likelihoods")
    answerer = Answerer(base_model(study.model), embedder(study.model), study.evaluation, study.model)
    answers = answerer.answer(requests, weights, metrics=("nll",), run_log=log)
    flat = np.array([dict(answer.scores)["nll"] for answer in answers]).reshape(-1, len(names))
    by_persona = np.split(flat, np.cumsum([len(its) for its in examples.values()])[:-1])
    return {
        persona_id: dialogue_means(own, dialogue_numbers([item.id for item in its]))
        for (persona_id, its), own in zip(examples.items(), by_persona, strict=True)
    }
