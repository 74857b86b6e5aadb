"""Synthetic smart-home personas with planted clusters, in the schema of the edgewise source.

An answer consists of choices: each device parameter in its context, tone, form of address, wording, closing. A choice is made by a rule of
the persona's cluster, a rule of the persona, chance in this dialogue, or a rule common to all; the prompt determines the settings that the
user names. The shares are parameters. The planted clusters are written to `truth.json` only.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from clusterlora.data.duplicates import normalize
from clusterlora.data.edgewise import dataset_of
from clusterlora.data.generator.home import CLIMATE_OF, DEVICES, SCENES, preference, surroundings
from clusterlora.data.generator.people import Person, invent
from clusterlora.data.generator.replies import answer
from clusterlora.data.generator.requests import Request, device_request, explicit_request, scene_request
from clusterlora.data.generator.rules import Mood, Taste, Value
from clusterlora.data.problems import Problems
from clusterlora.data.source import SourceData
from clusterlora.data.truth import Truth, write_truth
from clusterlora.durable import write_durably
from clusterlora.errors import BadSettings
from clusterlora.settings import DataSettings, SyntheticSettings
from clusterlora.values import Dataset

Record = Mapping[str, Any]

_ATTEMPTS = 50
"""How often a dialogue is generated again if the population already has one with the same words."""


@dataclass(frozen=True, slots=True)
class SyntheticPopulation:
    """Line-aligned records in the edgewise schema, and the planted truth."""

    characters: tuple[Record, ...]
    routines: tuple[Record, ...]
    sessions: tuple[Record, ...]
    truth: Truth

    @property
    def dataset(self) -> Dataset:
        """The personas, parsed from the records by the edgewise source."""
        return dataset_of(self.characters, self.sessions)


def read_synthetic(settings: DataSettings, problems: Problems) -> SourceData:  # noqa: ARG001  (generated data has no problems)
    """Return the personas that `settings.synthetic` describes."""
    return SourceData(generate(settings.synthetic).dataset)


def generate(settings: SyntheticSettings) -> SyntheticPopulation:
    """Return a population that depends only on the settings; no two of its dialogues have the same words.

    Raises:
        BadSettings: the shares sum to more than 1, or the grammar has fewer dialogues than requested.
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
    used_texts: set[str] = set()
    for number, (_, cluster) in enumerate(truth.clusters):
        rng = Random(f"{settings.seed}/person/{number}")
        person = invent(rng, cluster=cluster)
        taste = Taste(settings, persona=number, cluster=cluster)
        characters.append({"character": person.description})
        routines.append({"routines": _routines(taste)})
        sessions.append({"sessions": [_fresh_session(i, rng, person, taste, used_texts) for i in range(settings.dialogues)]})
    return SyntheticPopulation(tuple(characters), tuple(routines), tuple(sessions), truth)


def planted(settings: SyntheticSettings) -> Truth:
    """Return the planted cluster of each persona."""
    clusters = [k for k, size in enumerate(settings.cluster_sizes) for _ in range(size)]
    Random(f"{settings.seed}/order").shuffle(clusters)  # the order of the personas must not reveal the clusters
    return Truth(tuple((f"persona_{number:03d}", cluster) for number, cluster in enumerate(clusters)))


def write_population(population: SyntheticPopulation, folder: Path) -> None:
    """Write characters.jsonl, routines.jsonl, sessions.jsonl and truth.json."""
    _write_lines(folder / "characters.jsonl", population.characters)
    _write_lines(folder / "routines.jsonl", population.routines)
    _write_lines(folder / "sessions.jsonl", population.sessions)
    write_truth(population.truth, folder / "truth.json")


def _write_lines(path: Path, records: Iterable[Record]) -> None:
    write_durably(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode())


def _fresh_session(number: int, rng: Random, person: Person, taste: Taste, used_texts: set[str]) -> Record:
    for attempt in range(_ATTEMPTS):
        session = _session(number, rng, person, taste, chatty=attempt > 0)
        words = normalize(" ".join(message["text"] for message in session["messages"]))
        if words not in used_texts:
            used_texts.add(words)
            return session
    raise BadSettings(f"the grammar of the synthetic source is exhausted after {len(used_texts)} different dialogues; request fewer")


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
    """Return one to three requests: usually a scene first, then devices that the dialogue has not mentioned."""
    manner = person.manner
    roll = rng.random()
    devices = rng.sample(tuple(DEVICES), len(DEVICES))
    requests: list[Request] = []
    if roll < 0.6:
        requests.append(scene_request(scene, rng, manner, meta, chatty=chatty))
        mentioned = {parameter.split(".")[0] for parameter in (*requests[0].wanted, *dict(requests[0].given))}
        devices = [device for device in devices if device not in mentioned]
    n_requests = rng.choices((1, 2, 3), weights=(25, 60, 15))[0]
    while len(requests) < n_requests:
        make_request = device_request if rng.random() < 0.5 else explicit_request
        requests.append(make_request(devices.pop(), rng, manner, meta, first=not requests, chatty=chatty))
    return requests


def _routines(taste: Taste) -> list[Record]:
    """Return a persona's preferences as triggers and actions: one routine per scene, one per climate."""
    routines: list[Record] = [
        {"triggers": dict(scene.triggers), "actions": _actions((*scene.given, *_preferred(taste, scene.parameters, name, "mild")))}
        for name, scene in SCENES.items()
        if scene.triggers
    ]
    for climate in ("cold", "mild", "hot"):
        preferred = _preferred(taste, SCENES["climate"].parameters, "climate", climate)
        routines.append({"triggers": {"outdoor_temp": climate}, "actions": _actions(preferred)})
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
    """Return the indices into `_routines` that a session of this scene applied."""
    triggered = [name for name, details in SCENES.items() if details.triggers]
    applied = [triggered.index(scene)] if scene in triggered else []
    if any(parameter.startswith("ac.") for parameter in SCENES[scene].parameters):
        applied.append(len(triggered) + ("cold", "mild", "hot").index(climate))
    return applied
