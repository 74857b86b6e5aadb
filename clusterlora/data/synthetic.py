"""Invented smart-home personas with planted clusters, in the schema of the edgewise source.

What an answer contains is decided choice by choice (each device parameter in its context, tone, form of address, wording, closing):
by a rule of the persona's cluster, by a rule of the persona, by chance in this dialogue, or by a rule common to all. What the user
spells out is determined by the prompt. The shares are parameters, the planted clusters are written to `truth.json` only.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from clusterlora.data.duplicates import fold
from clusterlora.data.edgewise import dataset_of
from clusterlora.data.generator.home import CLIMATE_OF, DEVICES, SCENES, preference, surroundings
from clusterlora.data.generator.people import Person, invent
from clusterlora.data.generator.replies import answer
from clusterlora.data.generator.requests import Request, device_request, explicit_request, scene_request
from clusterlora.data.generator.rules import Mood, Taste, Value
from clusterlora.data.problems import Problems
from clusterlora.data.reading import Reading
from clusterlora.data.truth import Truth, write_truth
from clusterlora.durable import write_durably
from clusterlora.errors import BadSettings
from clusterlora.settings import DataSettings, SyntheticSettings
from clusterlora.values import Dataset

Record = Mapping[str, Any]

_ATTEMPTS = 50
"""Times a dialogue is invented again when the population already holds one with the same words."""


@dataclass(frozen=True, slots=True)
class SyntheticPopulation:
    """Line-aligned records of the edgewise schema, and the planted truth apart from them."""

    characters: tuple[Record, ...]
    routines: tuple[Record, ...]
    sessions: tuple[Record, ...]
    truth: Truth

    @property
    def dataset(self) -> Dataset:
        """The personas, read from the records as the edgewise source reads files."""
        return dataset_of(self.characters, self.sessions)


def read_synthetic(settings: DataSettings, problems: Problems) -> Reading:  # noqa: ARG001 - what we invent has no problems
    """Return the personas that `settings.synthetic` describes."""
    return Reading(generate(settings.synthetic).dataset)


def generate(settings: SyntheticSettings) -> SyntheticPopulation:
    """Return a population that depends on the settings alone; no two of its dialogues have the same words.

    Raises:
        BadSettings: the shares sum to more than 1, or more dialogues are asked for than the grammar holds.
    """
    total = settings.cluster_share + settings.persona_share + settings.noise_share
    if total > 1 + 1e-9:
        raise BadSettings(
            f"cluster_share {settings.cluster_share} + persona_share {settings.persona_share} + noise_share {settings.noise_share} "
            f"= {total:g} is more than 1; lower one of them"
        )
    truth = planted(settings)
    characters: list[Record] = []
    routines: list[Record] = []
    sessions: list[Record] = []
    said: set[str] = set()
    for number, (_, cluster) in enumerate(truth.clusters):
        rng = Random(f"{settings.seed}/person/{number}")
        person = invent(rng, cluster=cluster)
        taste = Taste(settings, persona=number, cluster=cluster)
        characters.append({"character": person.description})
        routines.append({"routines": _routines(taste)})
        sessions.append({"sessions": [_fresh_session(i, rng, person, taste, said) for i in range(settings.dialogues)]})
    return SyntheticPopulation(tuple(characters), tuple(routines), tuple(sessions), truth)


def planted(settings: SyntheticSettings) -> Truth:
    """Return which cluster each persona is invented in."""
    clusters = [k for k, size in enumerate(settings.cluster_sizes) for _ in range(size)]
    Random(f"{settings.seed}/order").shuffle(clusters)  # the order of the personas must not reveal the clusters
    return Truth(tuple((f"persona_{number:03d}", cluster) for number, cluster in enumerate(clusters)))


def write(population: SyntheticPopulation, folder: Path) -> None:
    """Write characters.jsonl, routines.jsonl, sessions.jsonl, and truth.json beside them."""
    _write_lines(folder / "characters.jsonl", population.characters)
    _write_lines(folder / "routines.jsonl", population.routines)
    _write_lines(folder / "sessions.jsonl", population.sessions)
    write_truth(population.truth, folder / "truth.json")


def _write_lines(path: Path, records: Iterable[Record]) -> None:
    write_durably(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode())


def _fresh_session(number: int, rng: Random, person: Person, taste: Taste, said: set[str]) -> Record:
    for attempt in range(_ATTEMPTS):
        session = _session(number, rng, person, taste, chatty=attempt > 0)
        words = fold(" ".join(message["text"] for message in session["messages"]))
        if words not in said:
            said.add(words)
            return session
    raise BadSettings(f"the grammar of the synthetic source is exhausted after {len(said)} different dialogues; ask for fewer")


def _session(number: int, rng: Random, person: Person, taste: Taste, *, chatty: bool) -> Record:
    scene = rng.choice(tuple(SCENES))
    meta = surroundings(rng, rng.choice(SCENES[scene].times))
    climate = CLIMATE_OF[meta["outdoor_temp"]]
    mood = Mood(taste, rng)
    messages: list[dict[str, str]] = []
    for request in _requests(scene, rng, person, meta, chatty=chatty):
        settings = list(request.given)
        settings += [(p, mood.settle(preference(p, scene=request.scene, climate=climate))) for p in request.wanted]
        messages.append({"role": "user", "text": request.text})
        messages.append({"role": "assistant", "text": answer(settings, mood, person, meta["time_of_day"])})
    return {"session_id": number, "meta": meta, "messages": messages, "applied_routines": _applied(scene, climate)}


def _requests(scene: str, rng: Random, person: Person, meta: Mapping[str, str], *, chatty: bool) -> Sequence[Request]:
    """Return one to three requests: mostly a scene first, then devices the dialogue has not spoken of."""
    manner = person.manner
    roll = rng.random()
    devices = rng.sample(tuple(DEVICES), len(DEVICES))
    requests: list[Request] = []
    if roll < 0.6:
        requests.append(scene_request(scene, rng, manner, meta, chatty=chatty))
        concerned = {parameter.split(".")[0] for parameter in (*requests[0].wanted, *dict(requests[0].given))}
        devices = [device for device in devices if device not in concerned]
    n_requests = rng.choices((1, 2, 3), weights=(25, 60, 15))[0]
    while len(requests) < n_requests:
        ask = device_request if rng.random() < 0.5 else explicit_request
        requests.append(ask(devices.pop(), rng, manner, meta, first=not requests, chatty=chatty))
    return requests


def _routines(taste: Taste) -> list[Record]:
    """Return what a persona likes as triggers and actions: one routine per scene, one per climate."""
    routines: list[Record] = [
        {"triggers": dict(scene.triggers), "actions": _actions((*scene.given, *_preferred(taste, scene.parameters, name, "mild")))}
        for name, scene in SCENES.items()
        if scene.triggers
    ]
    for climate in ("cold", "mild", "hot"):
        liked = _preferred(taste, SCENES["climate"].parameters, "climate", climate)
        routines.append({"triggers": {"outdoor_temp": climate}, "actions": _actions(liked)})
    return routines


def _preferred(taste: Taste, parameters: Sequence[str], scene: str, climate: str) -> list[tuple[str, Value]]:
    return [(p, taste.rule(preference(p, scene=scene, climate=climate))) for p in parameters]


def _actions(settings: Iterable[tuple[str, Value]]) -> dict[str, dict[str, Value]]:
    actions: dict[str, dict[str, Value]] = {}
    for parameter, value in settings:
        device, name = parameter.split(".")
        actions.setdefault(device, {})[name] = value
    return actions


def _applied(scene: str, climate: str) -> list[int]:
    """Return the positions in `_routines` that a session of this scene followed."""
    triggered = [name for name, described in SCENES.items() if described.triggers]
    applied = [triggered.index(scene)] if scene in triggered else []
    if any(parameter.startswith("ac.") for parameter in SCENES[scene].parameters):
        applied.append(len(triggered) + ("cold", "mild", "hot").index(climate))
    return applied
