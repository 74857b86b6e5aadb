"""Invented people whose signal is known: what the verdict of `clusterlora data signal` is held against first."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from clusterlora.data.synthetic import generate
from clusterlora.settings import DataSettings, SyntheticSettings
from clusterlora.values import Dialogue, Persona

CLUSTER_SIZES, DIALOGUES = (4, 4, 4), 17
_NAMES = ("Ada", "Ben", "Cleo", "Dan", "Eve", "Finn", "Gus", "Hana", "Ida", "Jon", "Kim", "Leo")
_N_EXTREME = 3


def _homes(cluster_share: float, persona_share: float, seed: int) -> SyntheticSettings:
    return SyntheticSettings(
        cluster_sizes=CLUSTER_SIZES, dialogues=DIALOGUES, cluster_share=cluster_share, persona_share=persona_share, seed=seed
    )


def _invented(cluster_share: float, persona_share: float, seed: int) -> Callable[[Path], DataSettings]:
    return lambda _: DataSettings(synthetic=_homes(cluster_share, persona_share, seed))


def _signed(folder: Path) -> DataSettings:
    """Return people who answer by taste, and whose every prompt is signed."""
    people = generate(_homes(0.3, 0.4, seed=10)).dataset.personas
    signatures = [f"Yours, {first} {second}." for first in _NAMES for second in _NAMES[:2]]
    rows = [(p, d, f" {name}", "") for p, name in zip(people, signatures, strict=False) for d in p.dialogues]
    return _table(folder / "signed.jsonl", rows)


def _extreme(folder: Path) -> DataSettings:
    """Return people alike, of whom three are alike nobody: one is rude, one in love, one in a hurry."""
    people = generate(_homes(0.0, 0.0, seed=11)).dataset.personas
    manners = ("WHAT NOW? FINE. DONE. WHATEVER. ", "My dearest darling, anything for you, my love, anything. ", "k k k k k k. ")
    step = len(people) // _N_EXTREME
    by_id = {people[number * step].id: manner for number, manner in enumerate(manners)}
    return _table(folder / "extreme.jsonl", [(p, d, "", by_id.get(p.id, "")) for p in people for d in p.dialogues])


def _table(file: Path, rows: list[tuple[Persona, Dialogue, str, str]]) -> DataSettings:
    """Write dialogues with words after every prompt and before every answer."""
    with file.open("w", encoding="utf-8") as lines:
        for persona, dialogue, after_prompt, before_answer in rows:
            turns = [
                {"role": turn.role, "text": turn.text + after_prompt if turn.role == "user" else before_answer + turn.text}
                for turn in dialogue.turns
            ]
            lines.write(json.dumps({"persona_id": persona.id, "dialogue_id": dialogue.id, "messages": turns}) + "\n")
    return DataSettings(source="table", path=str(file))


PLANTED: Mapping[str, Callable[[Path], DataSettings]] = {
    "clusters and people differ": _invented(0.5, 0.25, 5),
    "nobody differs": _invented(0.0, 0.0, 0),
    "people differ, no clusters": _invented(0.0, 0.6, 1),
    "clusters differ, people do not": _invented(0.6, 0.0, 3),
    "prompts are signed": _signed,
    "three are extreme, the others alike": _extreme,
    "clusters differ a little": _invented(0.15, 0.0, 4),
    "people differ a little": _invented(0.0, 0.15, 2),
}
"""By what is planted: a function of a folder for its files, returning where the people are."""
