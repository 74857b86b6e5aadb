"""The persona signal as a table and as a sentence."""

from collections.abc import Iterator
from typing import Literal

from clusterlora.evaluation.markdown import markdown_table
from clusterlora.persona_signal.measure import PersonaSignal, Recognition

LITTLE = 0.005
"""Share of the residual below which the persona explains little. Synthetic personas whose answers are three quarters personal have 0.02:
embeddings mostly encode the subject and the wording of an answer, so a small share alone is no evidence."""
FAR_ABOVE = 2.0
"""Ratio to chance, at the lower end of the interval, from which answers identify personas well enough for training."""


_NOTHING = "expect no method that adapts to people to beat one adapter for all"
_UNDECIDED = "what to expect stays open, and only a comparison of the methods tells"

Expectation = Literal["undecided", "nothing", "little", "people", "clusters", "people and clusters"]


def verdict(signal: PersonaSignal) -> str:
    """Return what gains the signal suggests, and whether prompts give people away."""
    return " ".join(part for part in (_given_away(signal), _expectation(signal)) if part)


def _given_away(signal: PersonaSignal) -> str:
    """Return that prompts alone tell people apart, so that one adapter for all may answer them differently; empty where they do not."""
    prompt = signal.persona_from_prompts
    if prompt.low < FAR_ABOVE * prompt.chance:
        return ""
    return (
        f"Prompts give people away: the right one of {signal.n_personas} is recognised by {_percent(prompt.accuracy)} of the prompts alone "
        f"({_percent(prompt.chance)} by chance), so one adapter for all can tell them apart, too."
    )


def expectation(signal: PersonaSignal) -> Expectation:
    """Return what the signal lets one expect to beat one adapter for all.

    An interval that holds chance shows nothing; that there is nothing it shows only if it excludes what would be enough for training, and
    is undecided if not. Among people who are alike within their clusters nobody is recognised, but the clusters are. A few labels cannot
    name one of many people, so for labels it is what the person explains that counts.
    """
    if signal.labelled:
        return _expectation_of_labels(signal)
    person, cluster = signal.persona_beyond_prompts, signal.cluster_beyond_prompts
    if person.low <= person.chance:
        if signal.has_clusters and cluster.low > cluster.chance and _clusters_explain(signal):
            return "clusters"
        return "undecided" if person.high >= FAR_ABOVE * person.chance else "nothing"
    hardly_recognised = person.low < FAR_ABOVE * person.chance
    if signal.persona_explains <= 0 or (signal.persona_explains < LITTLE and hardly_recognised):
        return "little"
    if not signal.has_clusters or cluster.low <= cluster.chance or signal.cluster_explains <= signal.random_explains:
        return "people"
    return "people and clusters"


def _expectation_of_labels(signal: PersonaSignal) -> Expectation:
    if (signal.persona_explains_low or 0.0) <= 0:
        return "undecided" if (signal.persona_explains_high or 0.0) >= LITTLE else "nothing"
    if signal.persona_explains < LITTLE:
        return "little"
    return "people and clusters" if signal.has_clusters and _clusters_explain(signal) else "people"


def _clusters_explain(signal: PersonaSignal) -> bool:
    """Return whether clusters are shown to explain something, and more than random groups do."""
    return (signal.cluster_explains_low or 0.0) > max(0.0, signal.random_explains)


def _words_of_labels(signal: PersonaSignal) -> str:
    """Return what labels let one expect, by the shares that person and cluster explain."""
    if not signal.has_intervals:
        return (
            f"Of what prompts leave open of the labels, the person explains {_share(signal.persona_explains)}; no interval of it was "
            "recorded, so this says nothing of what to expect: clusterlora data signal measures it again."
        )
    expected, low, high = expectation(signal), _share(signal.persona_explains_low or 0.0), _share(signal.persona_explains_high or 0.0)
    explains = f"Of what prompts leave open of the labels, the person explains {_share(signal.persona_explains)}"
    explains += f" (95% interval {low} to {high})"
    if expected == "undecided":
        return f"{explains}: {_UNDECIDED}."
    if expected == "nothing":
        return f"{explains}, which is not shown to be anything: {_NOTHING}."
    if expected == "little":
        return f"{explains}: expect small gains, and many items needed to show them."
    if expected == "people":
        why = "clusters explain no more than random groups" if signal.has_clusters else "there are no clusters worth having"
        return f"{explains}, but {why}: expect gains per person rather than per cluster."
    return (
        f"{explains}, the cluster {_share(signal.cluster_explains)} and random groups {_share(signal.random_explains)}: "
        "adapters per cluster and per person have something to win."
    )


def _expectation(signal: PersonaSignal) -> str:
    if signal.labelled:
        return _words_of_labels(signal)
    person, cluster, expected = signal.persona_beyond_prompts, signal.cluster_beyond_prompts, expectation(signal)
    if expected == "clusters":
        return (
            f"The right one of {cluster.n_classes} clusters is recognised by {_percent(cluster.accuracy)} of the answers "
            f"({_percent(cluster.chance)} for random groups), while people within them are not shown to be told apart "
            f"({_percent(person.accuracy)} recognised, {_percent(person.low)} to {_percent(person.high)}, where chance is "
            f"{_percent(person.chance)}): expect gains per cluster rather than per person."
        )
    if expected in ("undecided", "nothing"):
        return (
            f"Answers are not shown to tell people apart beyond what their prompts give away ({_percent(person.accuracy)} recognised, "
            f"{_percent(person.low)} to {_percent(person.high)}, where chance is {_percent(person.chance)}): "
            f"{_UNDECIDED if expected == 'undecided' else _NOTHING}."
        )
    recognised = (
        f"The right one of {signal.n_personas} people is recognised by {_percent(person.accuracy)} of the answers "
        f"({_percent(person.chance)} by chance)"
    )
    if expected == "little":
        return (
            f"{recognised}, but knowing the person explains {_little(signal.persona_explains)} of what prompts leave open: "
            "expect small gains, and many items needed to show them."
        )
    if expected == "people":
        if not signal.has_clusters:
            return f"{recognised}, but there are no clusters worth having: expect gains per person, not per cluster."
        return (
            f"{recognised}, but clusters are not shown to be better than random groups ({_percent(cluster.accuracy)} against "
            f"{_percent(cluster.chance)}): expect gains per person rather than per cluster."
        )
    return (
        f"{recognised}, the right one of {cluster.n_classes} clusters by {_percent(cluster.accuracy)} "
        f"({_percent(cluster.chance)} for random groups): adapters per cluster and per person have something to win."
    )


def markdown(signal: PersonaSignal) -> str:
    """Return the verdict, its tables, and how they were measured."""
    return (
        f"**{verdict(signal)}**\n\n"
        + markdown_table(("recognised", "correct", "95% interval", "chance"), list(recognitions(signal)), right=(False, True, True, True))
        + "\n"
        + markdown_table(("", "value"), list(shares(signal)), right=(False, True))
        + f"\n{basis(signal)}\n"
    )


def recognitions(signal: PersonaSignal) -> Iterator[tuple[str, str, str, str]]:
    """Yield (what is recognised, accuracy, its interval, chance)."""
    n_personas, n_clusters = signal.n_personas, signal.cluster_beyond_prompts.n_classes
    yield _recognition_cells(f"which of {n_personas} people, by the prompt", signal.persona_from_prompts)
    yield _recognition_cells(f"which of {n_personas} people, by the answer beyond the prompt", signal.persona_beyond_prompts)
    if signal.has_clusters:
        yield _recognition_cells(f"which of {n_clusters} clusters, by the answer beyond the prompt", signal.cluster_beyond_prompts)


def shares(signal: PersonaSignal) -> Iterator[tuple[str, str]]:
    """Yield (name, value)."""
    yield "of what prompts leave open, the person explains", _share(signal.persona_explains)
    if signal.has_clusters:
        yield "of it, the cluster explains", _share(signal.cluster_explains)
        yield "of it, random groups of the same sizes explain", _share(signal.random_explains)
    yield "mean cosine distance of answers to the same person", f"{signal.distance_within:.3f}"
    yield "mean cosine distance of answers to different people", f"{signal.distance_between:.3f}"


def basis(signal: PersonaSignal) -> str:
    """Return what was measured, and on what data."""
    once = "(near) equal dialogues count once"
    handled = (
        f"Labels are read as they are, and {once}"
        if signal.labelled
        else (f"Words that the dialogue had before an answer are masked in it, and {once}")
    )
    return f"{signal.n_exchanges} exchanges of {signal.n_personas}{_sampled(signal)}; {_fitted(signal)}. {handled}. " + (
        "Chance for clusters is what random groups of the same sizes reach." if signal.has_clusters else "There are no clusters."
    )


def _sampled(signal: PersonaSignal) -> str:
    if signal.n_population <= signal.n_personas:
        return " people"
    return f" of {signal.n_population} people" + (", some of every cluster" if signal.has_clusters else "")


def _fitted(signal: PersonaSignal) -> str:
    if signal.within_dialogues:
        return (
            "people have too few dialogues to hold any out, so the first answers of each dialogue are fitted and its later ones told, "
            "and what makes a dialogue alike counts as personal: the true signal is at most this"
        )
    return "fitted on train, told of val, test not read"


def _recognition_cells(name: str, recognition: Recognition) -> tuple[str, str, str, str]:
    interval = f"{_percent(recognition.low)} to {_percent(recognition.high)}"
    return name, _percent(recognition.accuracy), interval, _percent(recognition.chance)


def _little(share: float) -> str:
    return f"only {_percent(share)}" if share >= 0.0005 else "nothing"


def _share(share: float) -> str:
    """Return an explained share in percent; a negative one explains nothing."""
    return _percent(share) if share >= 0.0005 else "none"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"
