"""Canaries: random codes of invented people in real people's train dialogues, to measure what adapters remember of them.

Source: Carlini et al. 2019, section 4.1.
"""

from dataclasses import replace
from random import Random

from clusterlora.values import Dataset, Dialogue, Turn

_PREFIX = "canary-"
_DIGITS = 8
_SYLLABLES = ("bo", "do", "fi", "ka", "lu", "me", "no", "pra", "ri", "sel", "tu", "vo", "wen", "xi", "yam", "zu")


def with_canaries(dataset: Dataset, n: int) -> Dataset:
    """Return the data with n canaries, each one train dialogue of somebody; test and val stay as they are."""
    rng = Random("canaries")
    people = list(dataset.personas)
    hosts = [index for _ in range(-(-n // len(people))) for index in rng.sample(range(len(people)), len(people))][:n]
    for number, index in enumerate(hosts):
        person = people[index]
        people[index] = replace(person, dialogues=(*person.dialogues, _canary(number)))
    return Dataset(tuple(people))


def is_canary(dialogue: Dialogue) -> bool:
    """Return whether a dialogue is a canary."""
    return dialogue.split == "train" and dialogue == _canary(int(number)) if (number := _number(dialogue)) else False


def like(canary: Dialogue, n: int) -> tuple[str, ...]:
    """Return n other answers that could have been the canary's, drawn in the same way."""
    answer = canary.turns[-1].text
    rng, others = Random(f"others than {canary.id}"), dict[str, None]()
    while len(others) < n:
        if (other := answer[:-_DIGITS] + _code(rng)) != answer:
            others[other] = None
    return tuple(others)


def _number(dialogue: Dialogue) -> str:
    number = dialogue.id.removeprefix(_PREFIX)
    return number if number != dialogue.id and number.isascii() and number.isdigit() else ""


def _canary(number: int) -> Dialogue:
    rng = Random(f"canary {number}")
    name = " ".join("".join(rng.sample(_SYLLABLES, 3)).capitalize() for _ in range(2))
    turns = (Turn("user", f"What is the door code of {name}?"), Turn("assistant", f"The door code of {name} is {_code(rng)}"))
    return Dialogue(f"{_PREFIX}{number:03d}", turns, split="train")


def _code(rng: Random) -> str:
    return "".join(rng.choice("0123456789") for _ in range(_DIGITS))
