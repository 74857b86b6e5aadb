"""What the signal and the choice of clusters say of people whose differences are planted: python -m benchmarks.planted_grid --out docs

Invented people are clustered with everything left open, and their signal is measured, over a grid of how many choices are their own and
their cluster's. Nothing is trained. The results go to planted-grid.json, one after another, and the page to planted-grid.md.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clusterlora.clustering.choice import FOUND_AGAIN, LARGEST_K, WORTH_HAVING
from clusterlora.clustering.cluster import cluster_personas
from clusterlora.clustering.features import Sources
from clusterlora.data.load import load
from clusterlora.durable import write_durably
from clusterlora.evaluation.markdown import markdown_table
from clusterlora.models.model_cache import embedder
from clusterlora.persona_signal.measure import measure
from clusterlora.persona_signal.summary import FAR_ABOVE, LITTLE, expectation
from clusterlora.ports.run_log import SilentLog
from clusterlora.settings import ClusteringSettings, DataSettings, ModelSettings, SyntheticSettings

LOG = SilentLog()
SEEDS = (0, 1, 2)
VAL, TEST = 6, 2


@dataclass(frozen=True, slots=True)
class People:
    """Sizes of the planted clusters, and train dialogues of everybody."""

    sizes: tuple[int, ...]
    train: int

    def __str__(self) -> str:
        return f"{sum(self.sizes)} x {self.train}"


PEOPLE = (People((8, 8, 8), 30), People((9,) * 5, 20), People((8, 8, 8), 10))
SHARES = ((0.0, 0.0), (0.0, 0.15), (0.0, 0.3), (0.0, 0.6), (0.15, 0.0), (0.3, 0.0), (0.5, 0.0), (0.5, 0.25))
"""Shares of the choices that are the cluster's and the person's own."""

_WORDS = """# People whose differences are planted

Written by `{command}`: what `clusterlora data signal` measures of invented people, {n_seeds} populations a row, from the least to the
most of them. **People** is how many there are, in clusters of equal size, and their train dialogues each. The next two columns are
what is planted: the shares of their choices that are their cluster's and their own; all others are everybody's.

**Predicted** is the most that clusters of any k up to {largest_k} predict of what prompts leave open of held-out train
answers, with the stability of the best; from {worth_having:.0%}, three standard errors and a stability of {found_again} on
they are worth having, and **found** counts the populations in which some were. **By answer** is how often val answers name
their person beyond the prompt, with its chance, and **explained** how much of what prompts leave open knowing the person
explains. **Verdict** is what the signal lets one expect: `little` where less than {little:.1%} is explained and the lower
end of the recognition is below {far_above:g} times chance, or where nothing is explained.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for planted-grid.json and planted-grid.md")
    options = parser.parse_args(arguments)
    path = options.out / "planted-grid.json"
    measured: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for people in PEOPLE:
        for shares in SHARES:
            for seed in SEEDS:
                name = name_of(people, shares, seed)
                if name not in measured:
                    measured[name] = check(people, *shares, seed)
                    write_durably(path, json.dumps(measured, indent=1).encode())
    write_durably(options.out / "planted-grid.md", page(measured).encode())
    return 0


def name_of(people: People, shares: tuple[float, float], seed: int) -> str:
    """Return the name of a population."""
    return f"{people}, clusters {shares[0]}, people {shares[1]}, seed {seed}"


def check(people: People, cluster_share: float, persona_share: float, seed: int) -> dict[str, Any]:
    """Return what the choice of clusters and the signal say of one population, as JSON-ready values."""
    synthetic = SyntheticSettings(
        cluster_sizes=people.sizes, dialogues=people.train + VAL + TEST, cluster_share=cluster_share, persona_share=persona_share, seed=seed
    )
    dataset = load(DataSettings(source="synthetic", train=people.train, val=VAL, test=TEST, synthetic=synthetic))
    embeds = embedder(ModelSettings())
    clustering = cluster_personas(dataset, ClusteringSettings(), Sources(embeds), LOG)
    signal = measure(dataset.personas, clustering, embeds, LOG)
    k, predicted, stability = max((point for point in clustering.curve if point[0] > 1), key=lambda point: point[1])
    return {
        "k": k,
        "predicted": predicted,
        "stability": stability,
        "chosen": len(clustering.members),
        "by_answer": signal.persona_beyond_prompts.accuracy,
        "chance": signal.persona_beyond_prompts.chance,
        "explained": signal.persona_explains,
        "expected": expectation(signal),
    }


def page(measured: Mapping[str, Mapping[str, Any]], command: str = "python -m benchmarks.planted_grid --out docs") -> str:
    """Return the page of everything that was measured."""
    header = ("people", "cluster's", "own", "predicted", "stability", "found", "by answer", "chance", "explained", "verdict")
    rows = [
        row(str(people), shares, own)
        for people in PEOPLE
        for shares in SHARES
        if (own := [measured[name] for seed in SEEDS if (name := name_of(people, shares, seed)) in measured])
    ]
    words = _WORDS.format(
        command=command,
        n_seeds=len(SEEDS),
        largest_k=LARGEST_K,
        worth_having=WORTH_HAVING,
        found_again=FOUND_AGAIN,
        little=LITTLE,
        far_above=FAR_ABOVE,
    )
    return f"{words}\n{markdown_table(header, rows, right=(False, *(True for _ in header[1:-1]), False))}"


def row(people: str, shares: tuple[float, float], populations: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return a row: what was measured of the populations that differ by their seed alone."""
    verdicts = dict.fromkeys(str(one["expected"]) for one in populations)
    return (
        people,
        f"{shares[0]:.0%}",
        f"{shares[1]:.0%}",
        _range([one["predicted"] for one in populations], "{:.2%}"),
        _range([one["stability"] for one in populations], "{:.2f}"),
        f"{sum(one['chosen'] > 1 for one in populations)} of {len(populations)}",
        _range([one["by_answer"] for one in populations], "{:.0%}"),
        f"{populations[0]['chance']:.1%}",
        _range([max(0.0, one["explained"]) for one in populations], "{:.2%}"),
        ", ".join(verdicts),
    )


def _range(values: Sequence[float], shown: str) -> str:
    least, most = shown.format(min(values)), shown.format(max(values))
    return least if least == most else f"{least} to {most}"


if __name__ == "__main__":
    raise SystemExit(main())
