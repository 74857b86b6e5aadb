"""How the choices in an answer are made: by the persona's cluster, the persona, chance, or a rule common to all.

Every stable choice is a pure function of (seed, names), so it does not depend on the order of the calls.
"""

import hashlib
from dataclasses import dataclass
from random import Random

from clusterlora.settings import SyntheticSettings

Value = str | int | bool


@dataclass(frozen=True, slots=True)
class Choice:
    """A choice that an answer requires in a context. `private` options suit one person only, such as a name."""

    name: str
    context: str
    options: tuple[Value, ...]
    private: tuple[Value, ...] = ()


def chance(*parts: object) -> float:
    """Return a pseudo-random number in [0, 1) that depends only on the arguments."""
    text = "\x1f".join(map(str, parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) / 2**64


class Taste:
    """The rules by which one persona's choices are made, apart from noise."""

    def __init__(self, settings: SyntheticSettings, *, persona: int, cluster: int) -> None:
        self.noise_share = settings.noise_share
        self._seed, self._persona, self._cluster = settings.seed, persona, cluster
        self._n_clusters = len(settings.cluster_sizes)
        # Noise is drawn first, per dialogue, so the other shares are relative to the choices without noise.
        stable = 1.0 - settings.noise_share or 1.0
        self._cluster_below = settings.cluster_share / stable
        self._persona_below = self._cluster_below + settings.persona_share / stable
        self._choices: dict[tuple[str, str], Value] = {}

    def rule(self, choice: Choice) -> Value:
        """Return the option of this persona for choices without noise."""
        key = (choice.name, choice.context)
        if key not in self._choices:
            self._choices[key] = self._decide(choice)
        return self._choices[key]

    def _decide(self, choice: Choice) -> Value:
        decider = chance(self._seed, "decider", self._persona, choice.name, choice.context)
        if self._cluster_below <= decider < self._persona_below:
            own = choice.options + choice.private
            return own[int(chance(self._seed, "persona", self._persona, choice.name, choice.context) * len(own))]
        # Clusters get different options as long as there are enough, and the common rule gets the next one.
        order = sorted(choice.options, key=lambda option: chance(self._seed, "order", choice.name, choice.context, option))
        index = self._cluster if decider < self._cluster_below else self._n_clusters
        return order[index % len(order)]


class Mood:
    """A persona's choices in one dialogue: the rule, or with probability `noise_share` a random option for the whole dialogue."""

    def __init__(self, taste: Taste, rng: Random) -> None:
        self._taste, self._rng = taste, rng
        self._drawn: dict[tuple[str, str], Value] = {}

    def settle(self, choice: Choice) -> Value:
        """Return the option that the answers of this dialogue use."""
        key = (choice.name, choice.context)
        if key not in self._drawn:
            noisy = self._rng.random() < self._taste.noise_share
            self._drawn[key] = self._rng.choice(choice.options + choice.private) if noisy else self._taste.rule(choice)
        return self._drawn[key]
