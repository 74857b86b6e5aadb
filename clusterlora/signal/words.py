"""A measured signal as a table and as a sentence."""

from collections.abc import Iterator

from clusterlora.evaluation.markdown import table
from clusterlora.signal.measure import Recognition, Signal

LITTLE = 0.005
"""Share of what prompts leave open below which the person explains little. Invented people whose answers are three quarters personal have
0.02: what embeddings hold of an answer is mostly its subject and its wording, so a small share alone says nothing."""
FAR_ABOVE = 2.0
"""Recognised so many times as often as by chance, even at the lower end of the interval, people leave traces that training can find."""


def verdict(signal: Signal) -> str:
    """Return what the numbers promise, and what they do not."""
    person, cluster = signal.persona_beyond_prompts, signal.cluster_beyond_prompts
    if person.low <= person.chance:
        return (
            "Answers do not tell people apart beyond what their prompts give away: "
            "expect no method that adapts to people to beat one adapter for all."
        )
    told_apart = (
        f"The right one of {signal.n_personas} people is recognised by {_percent(person.accuracy)} of the answers "
        f"({_percent(person.chance)} by chance)"
    )
    hardly_recognised = person.low < FAR_ABOVE * person.chance
    if signal.persona_explains <= 0 or (signal.persona_explains < LITTLE and hardly_recognised):
        return (
            f"{told_apart}, and knowing the person explains only {_percent(max(0.0, signal.persona_explains))} of what prompts leave "
            "open: expect small gains, and many items needed to show them."
        )
    if cluster.low <= cluster.chance or signal.cluster_explains <= signal.random_explains:
        return f"{told_apart}, but clusters no better than random groups: expect gains per person, not per cluster."
    return (
        f"{told_apart}, the right one of {cluster.n_classes} clusters by {_percent(cluster.accuracy)} "
        f"({_percent(cluster.chance)} for random groups): adapters per cluster and per person have something to win."
    )


def markdown(signal: Signal) -> str:
    """Return the verdict, the tables behind it, and how they came about."""
    return (
        f"**{verdict(signal)}**\n\n"
        + table(("recognised", "correct", "95% interval", "chance"), list(recognitions(signal)), right=(False, True, True, True))
        + "\n"
        + table(("", "value"), list(shares(signal)), right=(False, True))
        + f"\n{basis(signal)}\n"
    )


def recognitions(signal: Signal) -> Iterator[tuple[str, str, str, str]]:
    """Yield (what is recognised, how often, its interval, chance)."""
    n_personas, n_clusters = signal.n_personas, signal.cluster_beyond_prompts.n_classes
    yield _row(f"which of {n_personas} people, by the prompt", signal.persona_from_prompts)
    yield _row(f"which of {n_personas} people, by the answer beyond the prompt", signal.persona_beyond_prompts)
    yield _row(f"which of {n_clusters} clusters, by the answer beyond the prompt", signal.cluster_beyond_prompts)


def shares(signal: Signal) -> Iterator[tuple[str, str]]:
    """Yield (what it is, its value)."""
    yield "of what prompts leave open, the person explains", _percent(signal.persona_explains)
    yield "of it, the cluster explains", _percent(signal.cluster_explains)
    yield "of it, random groups of the same sizes explain", _percent(signal.random_explains)
    yield "mean cosine distance of answers to the same person", f"{signal.distance_within:.3f}"
    yield "mean cosine distance of answers to different people", f"{signal.distance_between:.3f}"


def basis(signal: Signal) -> str:
    """Return what was looked at."""
    return (
        f"{signal.n_exchanges} exchanges of {signal.n_personas} people; {_fitted(signal)}. Words that the "
        "dialogue had before an answer are masked in it, and (near) equal dialogues count once. Chance for clusters is what random "
        "groups of the same sizes reach."
    )


def _fitted(signal: Signal) -> str:
    if signal.within_dialogues:
        return (
            "people have too few dialogues to hold any out, so the first answers of each dialogue are fitted and its later ones told, "
            "and what makes a dialogue alike counts as personal: the true signal is at most this"
        )
    return "fitted on train, told of val, test not read"


def _row(name: str, recognition: Recognition) -> tuple[str, str, str, str]:
    interval = f"{_percent(recognition.low)} to {_percent(recognition.high)}"
    return name, _percent(recognition.accuracy), interval, _percent(recognition.chance)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"
