"""JSON files of earlier scripts: splits, cluster maps and results by persona, in any of these shapes.

Splits        {split: {persona: [dialogue, ...]}} or {persona: {split: [dialogue, ...]}}
Cluster maps  {persona: cluster}, {cluster: [persona, ...]}, [[persona, ...], ...] or [{"persona_id": ..., "cluster": ...}, ...]
Results       {persona: number}, {persona: {metric: number}} or [{"persona_id": ..., metric: number}, ...]

Each may be wrapped in an object under the key `splits`, `clusters` (or `cluster_map`, `assignments`), or `results` (or `personas`).
A dialogue is given by its id, or by its position in the persona's dialogues, from 0. A persona is given by its id, or by a text that ends
in the same number as exactly one id.
"""

import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from clusterlora.data.records import SPLIT_NAMES
from clusterlora.errors import BadData
from clusterlora.json_text import parsed
from clusterlora.values import Split

_WRAPPERS = ("splits", "clusters", "cluster_map", "assignments", "results", "personas")
_PERSONA_FIELDS = ("persona_id", "persona", "user_id", "id")
_CLUSTER_FIELDS = ("cluster", "cluster_id", "label")


def read_json(path: Path) -> Any:
    """Return the content of a JSON file, unwrapped. Raises BadData."""
    try:
        content = parsed(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadData(f"{path}: no such file") from None
    except (OSError, ValueError, RecursionError) as error:
        raise BadData(f"{path}: cannot be read as JSON ({error})") from error
    if isinstance(content, dict):
        return next((content[name] for name in _WRAPPERS if isinstance(content.get(name), dict | list)), content)
    return content


def persona_resolver(ids: Sequence[str]) -> Callable[[object], str | None]:
    """Return a function from a label to a persona id: the equal id, else the only id that ends in the same number, else None."""
    by_number: dict[int, list[str]] = {}
    for persona_id in ids:
        if (number := _number(persona_id)) is not None:
            by_number.setdefault(number, []).append(persona_id)
    all_ids = set(ids)

    def resolve(label: object) -> str | None:
        if str(label) in all_ids:
            return str(label)
        number = _number(str(label))
        candidates = by_number.get(number, []) if number is not None else []
        return candidates[0] if len(candidates) == 1 else None

    return resolve


def read_splits(path: Path, dialogue_ids: Mapping[str, Sequence[str]]) -> dict[str, dict[str, Split]]:
    """Return the split of each dialogue that the file lists, by persona and dialogue id.

    Raises:
        BadData: another shape, or a persona or dialogue that is not in the data.
    """
    content = read_json(path)
    shape = f'{path}: is neither {{"train": {{persona: [dialogues]}}, ...}} nor {{persona: {{"train": [dialogues], ...}}}}'
    if not isinstance(content, dict) or not all(isinstance(part, dict) for part in content.values()):
        raise BadData(shape)
    by_split = bool(content) and content.keys() <= SPLIT_NAMES.keys()
    triples = [(b, a, listed) if by_split else (a, b, listed) for a, part in content.items() for b, listed in part.items()]
    resolve = persona_resolver(tuple(dialogue_ids))
    splits: dict[str, dict[str, Split]] = {}
    for label, split, listed in triples:
        if split not in SPLIT_NAMES or not isinstance(listed, list):
            raise BadData(f"{shape}; it has {split!r}: {listed!r:.80}")
        persona_id = resolve(label)
        if persona_id is None:
            raise BadData(f"{path}: persona {label!r} is not in the data (its first ids: {', '.join(list(dialogue_ids)[:3])})")
        for dialogue_id in _dialogues(path, persona_id, listed, dialogue_ids[persona_id]):
            if splits.setdefault(persona_id, {}).setdefault(dialogue_id, SPLIT_NAMES[split]) != SPLIT_NAMES[split]:
                raise BadData(f"{path}: dialogue {dialogue_id!r} of persona {persona_id!r} is in two splits; keep it in one")
    return splits


def read_clusters(path: Path, persona_ids: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Return the members of every cluster, cluster 0 first, in the order of the data.

    Raises:
        BadData: another shape, a persona that is in two clusters, in none or not in the data, or a gap in the cluster numbers.
    """
    resolve = persona_resolver(persona_ids)
    cluster_by_persona: dict[str, int] = {}
    for label, cluster in _cluster_pairs(path, read_json(path)):
        persona_id = resolve(label)
        if persona_id is None:
            raise BadData(f"{path}: persona {label!r} is not in the data (its first ids: {', '.join(persona_ids[:3])})")
        if cluster_by_persona.setdefault(persona_id, cluster) != cluster:
            raise BadData(f"{path}: persona {persona_id!r} is in clusters {cluster_by_persona[persona_id]} and {cluster}; keep one")
    if missing := [persona_id for persona_id in persona_ids if persona_id not in cluster_by_persona]:
        raise BadData(f"{path}: {len(missing)} personas of the data have no cluster (first: {missing[0]}); add them, or leave them out")
    numbers = sorted(set(cluster_by_persona.values()))
    if len(numbers) < 2 or numbers != list(range(len(numbers))):
        raise BadData(f"{path}: its clusters are {', '.join(map(str, numbers)) or 'none'}; number at least two, without gaps, from 0")
    return tuple(tuple(p for p in persona_ids if cluster_by_persona[p] == k) for k in numbers)


def read_results(path: Path, persona_ids: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return the score of each persona by metric. Raises BadData if the file has none."""
    content = read_json(path)
    records = content.items() if isinstance(content, dict) else ((_field(row, _PERSONA_FIELDS), row) for row in _rows(path, content))
    resolve = persona_resolver(persona_ids)
    scores: dict[str, dict[str, float]] = {}
    for label, value in records:
        persona_id = resolve(label)
        if persona_id is None:
            continue  # the file may also contain totals and settings
        if _is_number(value):
            scores.setdefault("score", {})[persona_id] = float(value)
        elif isinstance(value, dict):
            for metric, number in value.items():
                if _is_number(number) and metric not in (*_PERSONA_FIELDS, *_CLUSTER_FIELDS):
                    scores.setdefault(str(metric), {})[persona_id] = float(number)
    if not scores:
        raise BadData(f"{path}: has no number for any persona of the data; expected {{persona: number}} or {{persona: {{metric: number}}}}")
    return scores


def read_folder_map(path: Path, persona_ids: Sequence[str]) -> dict[str, str]:
    """Return the folder name of each persona that the file lists. Raises BadData for another shape, or somebody who is not in the data."""
    content = read_json(path)
    if not isinstance(content, dict) or not content or not all(isinstance(name, str) for name in content.values()):
        raise BadData(f"{path}: is not an object from persona to folder name")
    resolve = persona_resolver(persona_ids)
    names: dict[str, str] = {}
    for label, name in content.items():
        persona_id = resolve(label)
        if persona_id is None:
            raise BadData(f"{path}: persona {label!r} is not in the data (its first ids: {', '.join(persona_ids[:3])})")
        if names.setdefault(persona_id, name) != name:
            raise BadData(f"{path}: persona {persona_id!r} has two folders, {names[persona_id]!r} and {name!r}; keep one")
    return names


def cluster_number(text: object) -> int | None:
    """Return the number at the end of a cluster's name: 3 of 3, "3" and "cluster_03"."""
    return None if isinstance(text, bool | float) else _number(str(text))


def _number(text: str) -> int | None:
    match = re.search(r"(\d{1,9})$", text)
    return int(match[1]) if match else None


def _dialogues(path: Path, persona_id: str, listed: Sequence[object], dialogue_ids: Sequence[str]) -> list[str]:
    """Return the ids of the listed dialogues, which are either all ids or all positions."""
    names = [str(entry) for entry in listed]
    if set(names) <= set(dialogue_ids):
        return names
    positions = [entry for entry in listed if isinstance(entry, int) and not isinstance(entry, bool) and 0 <= entry < len(dialogue_ids)]
    if len(positions) == len(listed):
        return [dialogue_ids[position] for position in positions]
    unknown = next(name for name in names if name not in dialogue_ids)
    raise BadData(
        f"{path}: {unknown:.80} is not a dialogue of persona {persona_id!r}: neither an id such as {dialogue_ids[0]!r} "
        f"nor a position below {len(dialogue_ids)}"
    )


def _cluster_pairs(path: Path, content: object) -> Iterator[tuple[object, int]]:
    """Yield (persona, cluster) from any of the shapes."""
    pairs: list[tuple[object, object]] = []
    if isinstance(content, dict) and all(isinstance(value, list) for value in content.values()):
        pairs = [(persona, cluster) for cluster, members in content.items() for persona in members]
    elif isinstance(content, dict):
        pairs = list(content.items())
    elif isinstance(content, list) and all(isinstance(members, list) for members in content):
        pairs = [(persona, cluster) for cluster, members in enumerate(content) for persona in members]
    else:
        pairs = [(_field(row, _PERSONA_FIELDS), _field(row, _CLUSTER_FIELDS)) for row in _rows(path, content)]
    for persona, cluster in pairs:
        number = cluster_number(cluster)
        if number is None or not isinstance(persona, str | int):
            raise BadData(f"{path}: {persona!r:.60} with cluster {cluster!r:.60} is not a persona in a numbered cluster")
        yield persona, number


def _rows(path: Path, content: object) -> list[dict[str, Any]]:
    if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
        raise BadData(f"{path}: contains {type(content).__name__}, not an object by persona or a list of records with persona_id")
    return content


def _field(row: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((row[name] for name in names if name in row), None)


def _is_number(value: object) -> TypeGuard[float]:
    # An integer may be too large for a float.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
