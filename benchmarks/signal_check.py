"""Holds the persona signal's verdict against small studies: python -m benchmarks.signal_check --out docs --data plays=plays.jsonl

Each data set gives a study without a gate, in which nothing is generated: unified, and over it a residual adapter per cluster and per
person. They are scored by the likelihood of the test answers, once with a person's own residual and once with somebody else's, which was
trained as long. The results go to signal-check.json, one set after another, and the page to signal-check.md.
"""

import argparse
import json
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks.planted import PLANTED
from clusterlora.clustering.choice import WORTH_HAVING
from clusterlora.clustering.cluster import cluster_personas
from clusterlora.clustering.features import Sources
from clusterlora.data.load import read
from clusterlora.durable import write_durably
from clusterlora.evaluation.markdown import markdown_table
from clusterlora.evaluation.select import select_arm
from clusterlora.evaluation.statistics import bootstrap_interval, paired_bootstrap
from clusterlora.gate.power import NOTABLE_GAIN
from clusterlora.models.model_cache import embedder
from clusterlora.persona_signal.measure import measure
from clusterlora.persona_signal.summary import expectation
from clusterlora.planning.attempts import next_request
from clusterlora.planning.study_state import StudyState, read_state
from clusterlora.planning.training_groups import groups_of
from clusterlora.planning.work_plan import WorkPlan, work_plan
from clusterlora.ports.run_log import SilentLog
from clusterlora.ports.stores import Stores
from clusterlora.recipe import Recipe
from clusterlora.settings import EMBEDDED_BASE, HOME_PROMPT, ClusteringSettings, DataSettings, EvaluationSettings, ModelSettings, Study
from clusterlora.stages.cluster import cluster_study
from clusterlora.stages.evaluate import reference_losses
from clusterlora.stages.prepare import prepare_study
from clusterlora.stages.train import train_group
from clusterlora.stages.val_dialogues import by_dialogue
from clusterlora.values import AdapterComposition, Dataset
from clusterlora.wiring import from_environment

LOG = SilentLog()
CLUSTER_SIZE = 4
"""Of every cluster: the residual of another one is then trained as long, and on as many people."""
Outcome = Literal["agrees", "does not agree", "not decided"]
METHODS = {"cluster_hybrid": "per cluster", "hybrid": "per person"}


@dataclass(frozen=True, slots=True)
class Scale:
    """People and dialogues of a check and epochs of its adapters: as much as a base model can be trained on in some minutes."""

    people: int
    train: int
    val: int
    test: int
    epochs: int
    batch_size: int


SCALES = {
    EMBEDDED_BASE: Scale(people=12, train=10, val=3, test=4, epochs=2, batch_size=4),
    "smollm2-135m": Scale(people=12, train=6, val=2, test=4, epochs=1, batch_size=1),
}

_WORDS = """# What the signal promises, and what studies find

Written by `{command}`. The planted sets are those of `benchmarks/planted.py`; the others are files of their names, and none of
them is part of the project. **Expected** is the verdict of `clusterlora data signal` before anything is trained. **By answer** is
how often it recognises the person by the answer beyond the prompt, with its 95 % interval, and by chance; **explained** how much of
what prompts leave open knowing the person explains, and **predicted** how much of held-out train answers clusters of {cluster_size}
people do: from {worth_having:.1%} on the default settings call clusters worth having, if they are also found again.

What a study then found: an adapter for everybody, and over it a residual per cluster and per person. **Per cluster** and **per
person** are gains in nats per token of the test answers, with 95 % intervals over people: over the adapter for everybody / over
answering with the residual of another cluster or person, which was trained as long on as many dialogues. A method **wins** (in bold)
if both intervals lie above zero: then it gains, and because of whom it was trained on. A cluster's residual has learnt from the person,
too, so where people differ it may win without there being clusters: which of the two wins is not held against the verdict.

| expected | agrees | does not agree | is not decided |
|---|---|---|---|
| `people`, `clusters` or both | a method wins | none does, and intervals end below {notable:g} | none does, and one ends above |
| `little` | no win is shown to be of {notable:g} or more | one is | |
| `nothing` | no method wins | one does | |
| `undecided` | | | always: the signal promises nothing and excludes nothing |

{notable:g} nats per token are what the gate calls a notable gain. These studies are small: {scales}. So are the samples
of the signal, which leaves open at this size what it would not leave open of more people and dialogues.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", action="append", default=[], metavar="NAME=FILE", help="a table of dialogues, beside the planted sets")
    parser.add_argument("--base-model", choices=tuple(SCALES), default=EMBEDDED_BASE, help="base model of the tables of dialogues")
    parser.add_argument("--out", type=Path, required=True, help="folder for signal-check.json and signal-check.md")
    options = parser.parse_args(arguments)
    path = options.out / "signal-check.json"
    checked: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    with tempfile.TemporaryDirectory() as folder:
        tables = dict(argument.split("=", 1) for argument in options.data)
        planted = [(f"planted: {name}", people(Path(folder)), EMBEDDED_BASE) for name, people in PLANTED.items()]
        real = [(name, DataSettings(source="table", path=str(Path(file).resolve())), options.base_model) for name, file in tables.items()]
        # In turn, so that there are some of each kind before all are checked.
        sets = [one for pair in zip_longest(planted, real) for one in pair if one is not None]
        for name, data, base in sets:
            if name not in checked:
                checked[name] = check(data, base)
                write_durably(path, json.dumps(checked, indent=1).encode())
                write_durably(options.out / "signal-check.md", page(checked).encode())
    return 0


def check(data: DataSettings, base: str) -> dict[str, Any]:
    """Return the signal of a data set and what a study of it finds, as JSON-ready values."""
    scale, began = SCALES[base], time.monotonic()
    n_clusters = min(scale.people, len(read(data).dataset.personas)) // CLUSTER_SIZE
    n_people = n_clusters * CLUSTER_SIZE
    people = replace(data, personas=n_people, train=scale.train, val=scale.val, test=scale.test)
    study = Study(
        name="check",
        data=replace(people, on_problem="skip", on_misfit="warn"),
        model=ModelSettings(base=base, system_prompt=HOME_PROMPT if base == EMBEDDED_BASE else None, max_length=320),
        methods=("unified", *METHODS),
        recipe=Recipe(epochs=scale.epochs, batch_size=scale.batch_size, learning_rate=1e-3),
        clustering=ClusteringSettings(sizes=(CLUSTER_SIZE,) * n_clusters),
        evaluation=EvaluationSettings(metrics=("likelihood", "nll"), headline="likelihood"),
    )
    with tempfile.TemporaryDirectory() as home:
        stores = from_environment({"CLUSTERLORA_HOME": home})
        prepare_study(study, stores, LOG)
        cluster_study(study.name, stores, LOG)
        state = read_state(study.name, stores)
        assert state.clustering is not None, "the study has been clustered"
        gains = _gains(_trained(study.name, stores), stores)
    return {
        "base": base,
        "people": len(state.dataset.personas),
        **promised(state.dataset, study.model),
        "predicted": dict(state.clustering.quality)["predicted"],
        "sizes": list(state.clustering.sizes),
        "gains": gains,
        "seconds": time.monotonic() - began,
    }


def promised(dataset: Dataset, model: ModelSettings) -> dict[str, Any]:
    """Return what `clusterlora data signal` says of these people: with the clusters that its default settings choose."""
    chosen = cluster_personas(dataset, ClusteringSettings(), Sources(embedder(model)))
    signal = measure(dataset.personas, chosen, embedder(model), LOG)
    person = signal.persona_beyond_prompts
    return {
        "expected": expectation(signal),
        "by_prompt": signal.persona_from_prompts.accuracy,
        "by_answer": [person.accuracy, person.low, person.high, person.chance],
        "explained": signal.persona_explains,
        "clusters_chosen": len(chosen.members),
    }


def _trained(name: str, stores: Stores) -> StudyState:
    """Return the state of a study after its adapters were trained, those of a wave in one pass."""
    state = read_state(name, stores)
    plan = work_plan(state)
    for wave in groups_of(state, plan, tuple(plan.specs)):
        adapters = tuple(chain.from_iterable(group.adapters for group in wave))
        train_group(next_request(state.settings, replace(wave[0], name=adapters[0], adapters=adapters), stores), stores, LOG)
    return read_state(name, stores)


def _gains(state: StudyState, stores: Stores) -> dict[str, dict[str, list[float]]]:
    """Return by method the gain over unified, and over somebody else's residual, in nats per token with its 95 % interval over people."""
    plan, gains = work_plan(state), dict[str, dict[str, list[float]]]()
    for name in METHODS:
        own = _own(state, plan, name, stores)
        theirs = _others(own)
        unified = {p: AdapterComposition(one.adapters[:1]) for p, one in own.items()}
        pairs = [pair for compositions in (own, theirs, unified) for pair in compositions.items()]
        losses = reference_losses(state, stores, plan, pairs, "test", LOG)
        gains[name] = {
            "over unified": _interval([losses[p, unified[p]] - losses[p, own[p]] for p in own]),
            "over others": _interval([losses[p, theirs[p]] - losses[p, own[p]] for p in own]),
        }
    return gains


def _own(state: StudyState, plan: WorkPlan, method: str, stores: Stores) -> dict[str, AdapterComposition]:
    """Return who answers each person: the arm that predicts their val answers best, as in a study."""
    # Of the weights that a residual may have, all or nothing: every one costs an answer.
    arms_by_persona = {p: tuple(dict.fromkeys((arms[0], arms[-1]))) for p, arms in plan.methods[method].arms_by_persona}
    pairs = [(p, arm) for p, arms in arms_by_persona.items() for arm in arms if len(arms) > 1]
    losses = by_dialogue(state, reference_losses(state, stores, plan, pairs, "val", LOG)) if pairs else {}
    return {
        p: arms[select_arm([losses[p, arm] for arm in arms], higher_is_better=False, margin_se=0.0) if len(arms) > 1 else 0]
        for p, arms in arms_by_persona.items()
    }


def _others(own: Mapping[str, AdapterComposition]) -> dict[str, AdapterComposition]:
    """Return the same compositions, with the residual of the next cluster or person in each one's place."""
    residuals = list(dict.fromkeys(part.name for one in own.values() for part in one.adapters[1:]))
    following = dict(zip(residuals, (*residuals[1:], *residuals[:1]), strict=True))
    return {
        p: AdapterComposition((*one.adapters[:1], *(replace(part, name=following[part.name]) for part in one.adapters[1:])))
        for p, one in own.items()
    }


def _interval(gains: Sequence[np.ndarray]) -> list[float]:
    """Return (mean over people, lower and upper end of its 95 % interval)."""
    persona = np.repeat(np.arange(len(gains)), [len(own) for own in gains])
    draws = paired_bootstrap(np.concatenate(gains)[:, None], persona, draws=2000, rng=np.random.default_rng(0))[:, 0]
    means = np.array([own.mean() for own in gains])
    interval = bootstrap_interval(draws, means)
    return [float(means.mean()), interval.low, interval.high]


def wins(checked: Mapping[str, Any], method: str) -> bool:
    """Return whether a method is better than unified because of whom its residual was trained on."""
    return all(low > 0 for _, low, _ in checked["gains"][method].values())


def outcome(checked: Mapping[str, Any]) -> Outcome:
    """Return whether a verdict is what the study found; "not decided" where one of the two leaves it open."""
    expected, won = checked["expected"], [method for method in METHODS if wins(checked, method)]
    if expected == "undecided":
        return "not decided"
    if expected == "nothing":
        return "does not agree" if won else "agrees"
    if expected == "little":
        return "does not agree" if any(_ends(checked, method)[0] >= NOTABLE_GAIN for method in won) else "agrees"
    # A cluster's residual has learnt from the person, too, so where people differ it may win without clusters.
    if won:
        return "agrees"
    return "does not agree" if all(_ends(checked, method)[1] < NOTABLE_GAIN for method in METHODS) else "not decided"


def _ends(checked: Mapping[str, Any], method: str) -> tuple[float, float]:
    """Return the ends of the interval that both of a method's gains allow: it is no better than the lower of them."""
    intervals = checked["gains"][method].values()
    return min(low for _, low, _ in intervals), min(high for _, _, high in intervals)


def page(checked: Mapping[str, Mapping[str, Any]], command: str = "python -m benchmarks.signal_check") -> str:
    """Return the page of everything that was checked."""
    header = ("data", "base", "expected", "by answer", "chance", "explained", "predicted", "clusters chosen", *METHODS.values(), "verdict")
    rows = [
        (
            name,
            one["base"],
            one["expected"],
            f"{one['by_answer'][0]:.1%} ({one['by_answer'][1]:.1%} to {one['by_answer'][2]:.1%})",
            f"{one['by_answer'][3]:.1%}",
            f"{max(0.0, one['explained']):.2%}",
            f"{max(0.0, one['predicted']):.2%}",
            f"{one['clusters_chosen']}" if one["clusters_chosen"] > 1 else "none",
            *(_shown(one, method) for method in METHODS),
            outcome(one),
        )
        for name, one in checked.items()
    ]
    scales = "; ".join(
        f"at most {one.people} people with {one.train} train, {one.val} val and {one.test} test dialogues, {one.epochs} "
        f"epoch{'s' if one.epochs > 1 else ''} on {base}"
        for base, one in SCALES.items()
    )
    words = _WORDS.format(command=command, cluster_size=CLUSTER_SIZE, worth_having=WORTH_HAVING, notable=NOTABLE_GAIN, scales=scales)
    counts = Counter(outcome(one) for one in checked.values())
    told = f"The verdict agrees on {counts['agrees']} of {len(checked)} sets, does not on {counts['does not agree']}, "
    told += f"and on {counts['not decided']} it is not decided."
    table = markdown_table(header, rows, right=(False, False, False, True, True, True, True, False, False, False, False))
    return f"{words}\n{told}\n\n{table}"


def _shown(one: Mapping[str, Any], method: str) -> str:
    gains = " / ".join(f"{mean:+.3f} ({low:+.3f} to {high:+.3f})" for mean, low, high in one["gains"][method].values())
    return f"**{gains}**" if wins(one, method) else gains


if __name__ == "__main__":
    raise SystemExit(main())
