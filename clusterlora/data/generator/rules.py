"""Who decides a personal choice in an answer: the persona's cluster, the persona, chance, or a rule common to all.

Every stable decision is a pure function of (seed, names), so it does not depend on the order in which things are asked.
"""

import hashlib
from dataclasses import dataclass
from random import Random

from clusterlora.settings import SyntheticSettings

Value = str | int | bool


@dataclass(frozen=True, slots=True)
class Choice:
    """Something an answer must settle in a context. `private` options make sense for one person only, such as a name."""

    name: str
    context: str
    options: tuple[Value, ...]
    private: tuple[Value, ...] = ()


def chance(*parts: object) -> float:
    """Return a number in [0, 1) that depends on nothing but its arguments."""
    text = "\x1f".join(map(str, parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) / 2**64


class Taste:
    """The stable part of one persona's choices."""

    def __init__(self, settings: SyntheticSettings, *, persona: int, cluster: int) -> None:
        self.noise_share = settings.noise_share
        self._seed, self._persona, self._cluster = settings.seed, persona, cluster
        self._n_clusters = len(settings.cluster_sizes)
        # Noise is drawn per dialogue first; among the dialogues it leaves alone the other shares grow accordingly.
        stable = 1.0 - settings.noise_share or 1.0
        self._cluster_below = settings.cluster_share / stable
        self._persona_below = self._cluster_below + settings.persona_share / stable
        self._known: dict[tuple[str, str], Value] = {}

    def rule(self, choice: Choice) -> Value:
        """Return what this persona gets whenever chance leaves the choice alone."""
        key = (choice.name, choice.context)
        if key not in self._known:
            self._known[key] = self._decide(choice)
        return self._known[key]

    def _decide(self, choice: Choice) -> Value:
        decider = chance(self._seed, "decider", self._persona, choice.name, choice.context)
        if self._cluster_below <= decider < self._persona_below:
            own = choice.options + choice.private
            return own[int(chance(self._seed, "persona", self._persona, choice.name, choice.context) * len(own))]
        # Clusters take different options while there are enough of them, and the common rule the next one.
        order = sorted(choice.options, key=lambda option: chance(self._seed, "order", choice.name, choice.context, option))
        place = self._cluster if decider < self._cluster_below else self._n_clusters
        return order[place % len(order)]


class Mood:
    """A persona's choices during one dialogue: the stable rule, or with probability `noise_share` one draw that then holds."""

    def __init__(self, taste: Taste, rng: Random) -> None:
        self._taste, self._rng = taste, rng
        self._drawn: dict[tuple[str, str], Value] = {}

    def settle(self, choice: Choice) -> Value:
        """Return the option this dialogue's answers use."""
        key = (choice.name, choice.context)
        if key not in self._drawn:
            noisy = self._rng.random() < self._taste.noise_share
            self._drawn[key] = self._rng.choice(choice.options + choice.private) if noisy else self._taste.rule(choice)
        return self._drawn[key]
