"""Files of the scripts that studied this before: splits, cluster maps and per-persona results, in the shapes JSON writers give them.

Splits        {split: {persona: [dialogue, ...]}} or {persona: {split: [dialogue, ...]}}
Cluster maps  {persona: cluster}, {cluster: [persona, ...]}, [[persona, ...], ...] or [{"persona_id": ..., "cluster": ...}, ...]
Results       {persona: number}, {persona: {metric: number}} or [{"persona_id": ..., metric: number}, ...]

Each may be wrapped in an object under the key `splits`, `clusters` (or `cluster_map`, `assignments`), or `results` (or `personas`).
A dialogue is its id, or its position among its persona's from 0. A persona is its id, or anything that ends in the same number as one id.
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from clusterlora.data.records import SPLIT_NAMES
from clusterlora.errors import BadData
from clusterlora.values import Split

_WRAPPERS = ("splits", "clusters", "cluster_map", "assignments", "results", "personas")
_PERSONA_FIELDS = ("persona_id", "persona", "user_id", "id")
_CLUSTER_FIELDS = ("cluster", "cluster_id", "label")


def read_json(path: Path) -> Any:
    """Return what a JSON file holds, unwrapped. Raises BadData naming the file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadData(f"{path}: no such file") from None
    except (OSError, ValueError, RecursionError) as problem:
        raise BadData(f"{path}: cannot be read as JSON ({problem})") from problem
    if isinstance(found, dict):
        return next((found[name] for name in _WRAPPERS if isinstance(found.get(name), dict | list)), found)
    return found


def persona_namer(ids: Sequence[str]) -> Callable[[object], str | None]:
    """Return what finds the persona somebody means: by id, else by the number at its end when exactly one id ends in it."""
    by_number: dict[int, list[str]] = {}
    for persona_id in ids:
        if (number := _number(persona_id)) is not None:
            by_number.setdefault(number, []).append(persona_id)
    known = set(ids)

    def name(said: object) -> str | None:
        if str(said) in known:
            return str(said)
        number = _number(str(said))
        meant = by_number.get(number, []) if number is not None else []
        return meant[0] if len(meant) == 1 else None

    return name


def read_splits(path: Path, dialogue_ids: Mapping[str, Sequence[str]]) -> dict[str, dict[str, Split]]:
    """Return the split of each dialogue that the file lists, by persona and dialogue id.

    Raises:
        BadData: another shape, or somebody or something that is not in the data.
    """
    found = read_json(path)
    shape = f'{path}: is neither {{"train": {{persona: [dialogues]}}, ...}} nor {{persona: {{"train": [dialogues], ...}}}}'
    if not isinstance(found, dict) or not all(isinstance(part, dict) for part in found.values()):
        raise BadData(shape)
    by_split = bool(found) and found.keys() <= SPLIT_NAMES.keys()
    triples = [(b, a, listed) if by_split else (a, b, listed) for a, part in found.items() for b, listed in part.items()]
    namer = persona_namer(tuple(dialogue_ids))
    splits: dict[str, dict[str, Split]] = {}
    for said, split, listed in triples:
        if split not in SPLIT_NAMES or not isinstance(listed, list):
            raise BadData(f"{shape}; found {split!r}: {listed!r:.80}")
        persona_id = namer(said)
        if persona_id is None:
            raise BadData(f"{path}: persona {said!r} is not in the data (its first ids: {', '.join(list(dialogue_ids)[:3])})")
        for dialogue_id in _dialogues(path, persona_id, listed, dialogue_ids[persona_id]):
            if splits.setdefault(persona_id, {}).setdefault(dialogue_id, SPLIT_NAMES[split]) != SPLIT_NAMES[split]:
                raise BadData(f"{path}: dialogue {dialogue_id!r} of persona {persona_id!r} is in two splits; keep it in one")
    return splits


def read_clusters(path: Path, persona_ids: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Return the members of every cluster, cluster 0 first, in the order of the data.

    Raises:
        BadData: another shape, a persona twice or not in the data, personas without a cluster, or an empty cluster.
    """
    namer = persona_namer(persona_ids)
    cluster_by_persona: dict[str, int] = {}
    for said, cluster in _cluster_pairs(path, read_json(path)):
        persona_id = namer(said)
        if persona_id is None:
            raise BadData(f"{path}: persona {said!r} is not in the data (its first ids: {', '.join(persona_ids[:3])})")
        if cluster_by_persona.setdefault(persona_id, cluster) != cluster:
            raise BadData(f"{path}: persona {persona_id!r} is in clusters {cluster_by_persona[persona_id]} and {cluster}; keep one")
    if missing := [persona_id for persona_id in persona_ids if persona_id not in cluster_by_persona]:
        raise BadData(f"{path}: {len(missing)} personas of the data have no cluster (first: {missing[0]}); add them, or leave them out")
    numbers = sorted(set(cluster_by_persona.values()))
    if len(numbers) < 2 or numbers != list(range(len(numbers))):
        raise BadData(f"{path}: its clusters are {', '.join(map(str, numbers)) or 'none'}; number at least two, without gaps, from 0")
    return tuple(tuple(p for p in persona_ids if cluster_by_persona[p] == k) for k in numbers)


def read_results(path: Path, persona_ids: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return every metric by persona that the file holds. Raises BadData."""
    found = read_json(path)
    records = found.items() if isinstance(found, dict) else ((_field(row, _PERSONA_FIELDS), row) for row in _rows(path, found))
    namer = persona_namer(persona_ids)
    scores: dict[str, dict[str, float]] = {}
    for said, value in records:
        persona_id = namer(said)
        if persona_id is None:
            continue  # totals and settings stand beside the personas
        if _is_number(value):
            scores.setdefault("score", {})[persona_id] = float(value)
        elif isinstance(value, dict):
            for metric, number in value.items():
                if _is_number(number) and metric not in (*_PERSONA_FIELDS, *_CLUSTER_FIELDS):
                    scores.setdefault(str(metric), {})[persona_id] = float(number)
    if not scores:
        raise BadData(
            f"{path}: no number of any persona of the data in it; expected {{persona: number}} or {{persona: {{metric: number}}}}"
        )
    return scores


def cluster_number(text: object) -> int | None:
    """Return the number at the end of a cluster's name: 3 of 3, "3" and "cluster_03"."""
    return None if isinstance(text, bool | float) else _number(str(text))


def _number(text: str) -> int | None:
    found = re.search(r"(\d{1,9})$", text)
    return int(found[1]) if found else None


def _dialogues(path: Path, persona_id: str, listed: Sequence[object], known: Sequence[str]) -> list[str]:
    """Return the dialogues meant: ids if all of them are, else positions."""
    names = [str(entry) for entry in listed]
    if set(names) <= set(known):
        return names
    positions = [entry for entry in listed if isinstance(entry, int) and not isinstance(entry, bool) and 0 <= entry < len(known)]
    if len(positions) == len(listed):
        return [known[position] for position in positions]
    odd = next(name for name in names if name not in known)
    raise BadData(
        f"{path}: {odd:.80} is no dialogue of persona {persona_id!r}, neither an id such as {known[0]!r} nor a position below {len(known)}"
    )


def _cluster_pairs(path: Path, found: object) -> Iterator[tuple[object, int]]:
    """Yield (persona, cluster) of every shape."""
    pairs: list[tuple[object, object]] = []
    if isinstance(found, dict) and all(isinstance(value, list) for value in found.values()):
        pairs = [(persona, cluster) for cluster, members in found.items() for persona in members]
    elif isinstance(found, dict):
        pairs = list(found.items())
    elif isinstance(found, list) and all(isinstance(members, list) for members in found):
        pairs = [(persona, cluster) for cluster, members in enumerate(found) for persona in members]
    else:
        pairs = [(_field(row, _PERSONA_FIELDS), _field(row, _CLUSTER_FIELDS)) for row in _rows(path, found)]
    for persona, cluster in pairs:
        number = cluster_number(cluster)
        if number is None or not isinstance(persona, str | int):
            raise BadData(f"{path}: {persona!r:.60} with cluster {cluster!r:.60} is not a persona in a numbered cluster")
        yield persona, number


def _rows(path: Path, found: object) -> list[dict[str, Any]]:
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        raise BadData(f"{path}: holds {type(found).__name__}, not an object by persona or a list of records with persona_id")
    return found


def _field(row: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((row[name] for name in names if name in row), None)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
