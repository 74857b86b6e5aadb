"""Measure what a study's shared adapters and its champion have memorised, before anybody asks to be forgotten."""

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from random import Random

import numpy as np

from clusterlora.adapters.compositions import combined_weights
from clusterlora.adapters.stored import stored_weights
from clusterlora.data.canaries import is_canary, like
from clusterlora.data.prompts import items, prompt_encoder
from clusterlora.errors import BadData, BadSettings, UnknownName
from clusterlora.evaluation.answer import Answerer, AnswerRequest
from clusterlora.evaluation.memorisation import (
    AdapterMemory,
    Exposure,
    Group,
    Membership,
    Memorisation,
    Said,
    Text,
    copies_of_learnt,
    copies_of_own,
    exposures,
    membership,
)
from clusterlora.metadata import Cut
from clusterlora.models.model_cache import base_model, embedder
from clusterlora.planning.ladder import REFERENCE
from clusterlora.planning.study_state import StudyState, read_state
from clusterlora.planning.work_plan import WorkPlan, cluster_adapters, trained_adapters, work_plan
from clusterlora.ports.run_log import RunLog
from clusterlora.ports.stores import Stores
from clusterlora.progress.timing import timed
from clusterlora.results.refresh import LAST_CHAMPION
from clusterlora.settings import PreparedStudy, check_study_name
from clusterlora.stages.compare import compare_study
from clusterlora.values import AdapterComposition, Item, Persona, Split, WeightedAdapter

N_OTHERS = 255
"""Codes that each canary is held against: its exposure is at most 8 bits."""
_AT_ONCE = 64
"""Compositions whose factors are in memory together."""
_SUFFIX = "-canaries"


@dataclass(frozen=True, slots=True)
class _Subject:
    """What is measured, and with what it answers whom."""

    name: str
    answers_with: Mapping[str, AdapterComposition]
    unlearnt: Mapping[str, Sequence[str]] = field(default_factory=dict[str, Sequence[str]])
    """By person the dialogues that are train dialogues of the study, but came after the adapters."""


def canary_copy(study_name: str, n: int, stores: Stores) -> PreparedStudy:
    """Return the study to run for canaries: a copy, as a study that has learnt nonsense could not be compared or served.

    Raises:
        BadSettings: the study is a refresh, answers with labels, or has canaries itself.
        UnknownName: there is no such study.
    """
    study = stores.studies.study(study_name)
    if study.refresh.root is not None:
        raise BadSettings(f"study {study_name} is a refresh; plant canaries in a copy of {study.refresh.root}")
    if study.data.canaries is not None:
        raise BadSettings(f"study {study_name} has canaries already; measure it without --canaries")
    if study.data.task != "text":
        raise BadSettings(f"study {study_name} answers with labels (data.task={study.data.task}), which can be no canaries")
    data = replace(study.data, canaries=n)
    if (cut := stores.studies.metadata(study_name, Cut)) is not None:
        # As much as the study itself learns from: another probe might leave planted dialogues out.
        data = replace(data, personas=cut.n_personas, train=cut.train, val=cut.val, test=cut.test)
    return replace(study, name=check_study_name(study_name + _SUFFIX), data=data, minutes=None)


def measure_privacy(study_name: str, stores: Stores, log: RunLog, *, n_prompts: int = 300, n_words: int = 8) -> Memorisation:
    """Return what unified, every cluster's adapter and the champion have memorised, and record it; the study's pages are written anew.

    Answers and likelihoods are not kept: the comparison reads what the study has kept. Exposure is that of the canaries of the study, else
    of its finished copy with canaries.

    Args:
        n_prompts: test prompts, and train prompts, that each of them answers at most.
        n_words: from how many words on a repetition counts.

    Raises:
        BadData: the study is not compared yet.
        UnknownName: there is no such study.
    """
    state = read_state(study_name, stores)
    if state.outcome is None:
        raise BadData(f"study {study_name} is not compared yet; let it finish first: clusterlora study run --name {study_name}")
    plan = work_plan(state)
    with timed(stores, study_name, "privacy"):
        found = [_measured(subject, state, plan, stores, log, n_prompts, n_words) for subject in _subjects(state, plan, stores)]
        if (planted := _with_canaries(state, stores)) is not None:
            exposed = _exposures(planted, stores, log)
            if planted.name == study_name:
                found = [replace(one, exposure=exposed.get(one.name)) for one in found]
            else:
                # The copy's clusters and champion may be others.
                found += [AdapterMemory(name=f"{name} of {planted.name}", membership=None, exposure=one) for name, one in exposed.items()]
    result = Memorisation(adapters=tuple(found), n_words=n_words, canaries_in=planted.name if planted else None)
    stores.studies.save_metadata(study_name, result)
    compare_study(study_name, stores, log)
    return result


def _subjects(state: StudyState, plan: WorkPlan, stores: Stores) -> Iterator[_Subject]:
    """Yield the shared adapters, each with its own people, then the champion as it answers everybody."""
    trained = trained_adapters(state, plan)
    everybody = set(state.dataset.ids)
    champion = state.outcome.champion if state.outcome else None
    for name in (REFERENCE, *cluster_adapters(plan)):
        if name in trained:
            people = [p for p in plan.specs[name].persona_ids if p in everybody]
            alone = AdapterComposition((WeightedAdapter(name),))
            yield _Subject(plan.specs[name].label + (", the champion" if name == champion else ""), dict.fromkeys(people, alone))
    # A refresh whose champion stays goes on answering with that.
    served = champion or (LAST_CHAMPION if state.start else None)
    routes = {r.persona_id: r.composition for r in stores.studies.routes(state.name) if r.method == served and r.seed == 0}
    if routes and served != REFERENCE:
        # Where a prompt shows train exchanges, nothing needs to be remembered of them; what is measured is the adapters under it.
        answers_with = {p: replace(one, shots=0) for p, one in routes.items() if one.adapters}
        unlearnt = dict(state.news.dialogues) if state.news and served == LAST_CHAMPION else {}
        yield _Subject(f"the champion, {served}", answers_with, unlearnt)


def _measured(
    subject: _Subject, state: StudyState, plan: WorkPlan, stores: Stores, log: RunLog, n_prompts: int, n_words: int
) -> AdapterMemory:
    told = _membership(subject, state, plan, stores, log)
    if state.settings.data.task != "text" or not subject.answers_with:
        return AdapterMemory(name=subject.name, membership=told)
    said = _answers(subject, state, plan, stores, log, n_prompts)
    groups: dict[frozenset[str], list[Said]] = {}
    for one in said:
        if not one.was_learnt:
            groups.setdefault(_learnt_from(subject.answers_with[one.persona_id], plan), []).append(one)
    asked = {one.key for one in said if not one.was_learnt}
    of_groups = (Group(tuple(its), tuple(_texts(subject, state, people, asked))) for people, its in groups.items())
    counts = (copies_of_learnt(of_groups, n_words=n_words), copies_of_own(said, n_words=n_words))
    return AdapterMemory(name=subject.name, membership=told, copies=counts)


def _learnt_from(composition: AdapterComposition, plan: WorkPlan) -> frozenset[str]:
    return frozenset(p for name in plan.with_needs(composition.adapter_names) for p in plan.specs[name].persona_ids)


def _texts(subject: _Subject, state: StudyState, people: frozenset[str], asked: Set[str]) -> Iterator[Text]:
    """Yield the answers of these people's train dialogues, and of their test dialogues that were not asked."""
    for person in state.dataset.personas:
        for dialogue in _told(subject, person).dialogues if person.id in people else ():
            key = _key(person.id, dialogue.id)
            if dialogue.split != "val" and key not in asked:
                yield from (Text(person.id, key, one.text, dialogue.split == "train") for one in dialogue.turns if one.role == "assistant")


def _key(persona_id: str, dialogue_id: str) -> str:
    return f"{persona_id}\n{dialogue_id}"


def _membership(subject: _Subject, state: StudyState, plan: WorkPlan, stores: Stores, log: RunLog) -> Membership | None:
    """Return how well the base model's loss minus the adapter's tells train dialogues from test dialogues.

    Val is no part of it: early stopping, mixtures and routes were chosen by what it says.
    """
    personas = state.dataset.by_id()
    of_split: tuple[Split, ...] = ("train", "test")
    asked = [
        (composition, item)
        for p, composition in subject.answers_with.items()
        for split in of_split
        for item in _items(subject, state, personas[p], split)
    ]
    base = [(replace(composition, adapters=()), item) for composition, item in asked]
    losses = np.array([loss for _, loss in _asked([*asked, *base], state, plan, stores, log, ())])
    gains = losses[len(asked) :] - losses[: len(asked)]
    numbers = {p: number for number, p in enumerate(subject.answers_with)}
    of_dialogue: dict[tuple[int, str, int], list[float]] = {}
    for (_, item), gain in zip(asked, gains.tolist(), strict=True):
        dialogue = (numbers[item.persona_id], item.id.rpartition("#")[0], int(item.split == "train"))
        of_dialogue.setdefault(dialogue, []).append(gain)
    if not of_dialogue:
        return None
    people, _, trained_on = (np.array(column) for column in zip(*of_dialogue, strict=True))
    return membership(people, np.array([np.mean(values) for values in of_dialogue.values()]), trained_on)


def _items(subject: _Subject, state: StudyState, person: Persona, split: Split) -> tuple[Item, ...]:
    model = state.settings.model
    shown = model.persona_in_prompt or subject.answers_with[person.id].persona_in_prompt
    return items(replace(model, persona_in_prompt=shown), _told(subject, person), split)


def _told(subject: _Subject, person: Persona) -> Persona:
    """Return the person without canaries, which are measured by themselves, and without train dialogues that were not learnt."""
    unlearnt = subject.unlearnt.get(person.id, ())
    kept = tuple(one for one in person.dialogues if not is_canary(one) and not (one.split == "train" and one.id in unlearnt))
    return replace(person, dialogues=kept)


def _answers(subject: _Subject, state: StudyState, plan: WorkPlan, stores: Stores, log: RunLog, n_prompts: int) -> tuple[Said, ...]:
    """Return the answers to one prompt of train and of test dialogues drawn at random, as many of each person as there is room for.

    At most half of a person's test dialogues are asked (of one, one or none): the others are what answers may repeat without having learnt.
    """
    personas, rng = state.dataset.by_id(), Random(subject.name)
    people = rng.sample(sorted(subject.answers_with), min(len(subject.answers_with), n_prompts))
    most = max(1, n_prompts // max(1, len(people)))
    of_split: tuple[Split, ...] = ("train", "test")
    asked: list[tuple[AdapterComposition, Item]] = []
    for p in people:
        for split in of_split:
            of_dialogue: dict[str, list[Item]] = {}
            for item in _items(subject, state, personas[p], split):
                of_dialogue.setdefault(item.id.rpartition("#")[0], []).append(item)
            n = len(of_dialogue) if split == "train" else (len(of_dialogue) + (len(of_dialogue) == 1 and rng.random() < 0.5)) // 2
            asked += [(subject.answers_with[p], rng.choice(of_dialogue[one])) for one in rng.sample(sorted(of_dialogue), min(n, most))]
    texts = _asked(asked, state, plan, stores, log, ("rouge_l",))
    return tuple(
        Said(item.persona_id, _key(item.persona_id, item.id.rpartition("#")[0]), text, item.reference, item.split == "train")
        for (_, item), (text, _) in zip(asked, texts, strict=True)
    )


def _asked(
    asked: Sequence[tuple[AdapterComposition, Item]],
    state: StudyState,
    plan: WorkPlan,
    stores: Stores,
    log: RunLog,
    metrics: tuple[str, ...],
) -> list[tuple[str, float]]:
    """Return (text, loss of the reference) of each item; nothing is kept."""
    if not asked:
        return []
    study = state.settings
    answerer = Answerer(base_model(study.model), embedder(study.model), study.evaluation, study.model)
    log.phase("measure privacy", total=len(asked), unit="answers")
    result: dict[int, tuple[str, float]] = {}
    numbers_of: dict[AdapterComposition, list[int]] = {}
    for number, (composition, _) in enumerate(asked):
        numbers_of.setdefault(composition, []).append(number)
    compositions = list(numbers_of)
    for start in range(0, len(compositions), _AT_ONCE):
        chunk = {one: plan.composition_key(one) for one in compositions[start : start + _AT_ONCE]}
        weights = {key: combined_weights(one.adapters, lambda name: stored_weights(stores, plan.keys[name])) for one, key in chunk.items()}
        numbers = sorted(number for one in chunk for number in numbers_of[one])
        requests = [AnswerRequest(chunk[asked[number][0]], asked[number][1]) for number in numbers]
        answers = answerer.answer(requests, weights, metrics=(*metrics, "nll"), run_log=log)
        result |= {number: (one.text, dict(one.scores)["nll"]) for number, one in zip(numbers, answers, strict=True)}
    return [result[number] for number in range(len(asked))]


def _with_canaries(state: StudyState, stores: Stores) -> StudyState | None:
    """Return the study if it has canaries, else its finished copy that has."""
    if state.settings.data.canaries is not None:
        return state
    try:
        copy = read_state(state.name + _SUFFIX, stores)
    except UnknownName:
        return None
    return copy if copy.settings.data.canaries is not None and copy.status == "finished" else None


def _exposures(state: StudyState, stores: Stores, log: RunLog) -> dict[str, Exposure]:
    """Return by subject how much likelier the canaries of its people are than others drawn like them."""
    plan, study = work_plan(state), state.settings
    encoder = prompt_encoder(base_model(study.model).tokenizer, study.model)
    found: dict[str, Exposure] = {}
    for subject in _subjects(state, plan, stores):
        asked: list[tuple[AdapterComposition, Item]] = []
        for person in state.dataset.personas:
            if person.id not in subject.answers_with:
                continue
            for canary in (one for one in person.of_split("train") if is_canary(one)):
                alone = replace(person, dialogues=(canary,))
                (item,) = items(study.model, alone, "train")
                texts = (item.reference, *like(canary, N_OTHERS))
                asked += [(subject.answers_with[person.id], replace(item, reference=text)) for text in texts]
        if not asked:
            continue
        losses = [loss for _, loss in _asked(asked, state, plan, stores, log, ())]
        n_tokens = encoder.n_response_tokens([item.reference for _, item in asked])
        totals = np.array(losses) * np.array(n_tokens)
        found[subject.name] = exposures([(float(one[0]), one[1:]) for one in totals.reshape(-1, N_OTHERS + 1)])
    return found
