"""Write docs/results.md from finished studies: every sentence and number in it is computed from what the studies left.

python -m benchmarks.results results shakespeare --out docs
"""

import argparse
import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from clusterlora.cli.local_stores import open_local_stores
from clusterlora.comparison.sentence import OUTCOMES
from clusterlora.config import PRESETS
from clusterlora.durable import write_durably
from clusterlora.errors import BadData, ClusterLoraError
from clusterlora.evaluation.markdown import cell, table
from clusterlora.evaluation.metrics import METRICS
from clusterlora.gate.report import markdown as verdict_markdown
from clusterlora.metadata import TruthAgreement
from clusterlora.persona_signal.measure import PersonaSignal
from clusterlora.persona_signal.summary import markdown as signal_markdown
from clusterlora.planning.study_state import read_state
from clusterlora.ports.run_log import SilentLog
from clusterlora.ports.stores import Stores
from clusterlora.progress.timing import seconds_by_phase
from clusterlora.settings import DataSettings, Study
from clusterlora.stages.compare import figure_path
from clusterlora.stages.signal import signal_of_data

Document = Mapping[str, Any]

ASKED = PRESETS["mission"]["gate"]
"""What the mission asks of cluster adapters; the gate of a study may have asked for less."""
HOPED = 0.86
"""Lower end of what the reference study hoped cluster adapters would reach (86-88 %)."""

PREFACE = """# Results

Written by `make results` from the studies below; nothing here is written by hand. Each section is one study: its settings, what its data
promised before training, whether the gate passed, the comparison on test items, and which of the mission's criteria were met.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("studies", nargs="+", metavar="STUDY", help="a study that has been compared")
    parser.add_argument(
        "--signal", action="append", default=[], metavar="FILE", help="a table of dialogues whose signal to measure; repeatable"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for results.md and a figure per study")
    chosen = parser.parse_args(arguments)
    try:
        print(write(chosen.studies, chosen.signal, open_local_stores(), chosen.out))
    except ClusterLoraError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def write(names: Sequence[str], files: Sequence[str], stores: Stores, out: Path) -> Path:
    """Write results.md and the figures into `out`, once every study is known to have results; return where the page is.

    Args:
        names: finished studies, a section each.
        files: tables of dialogues that were not studied, and whose signal is measured here.

    Raises:
        BadData: a study has not been compared.
        UnknownName: there is no such study.
    """
    sections = [section(stores.studies.study(name), document(name, stores), stores) for name in names]
    sections += [unstudied(file) for file in files]
    for name in names:
        out.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(figure_path(stores, name), out / f"{name}.png")
    page = out / "results.md"
    write_durably(page, (PREFACE + "\n" + "\n".join(sections)).encode())
    return page


def document(name: str, stores: Stores) -> Document:
    """Return what `compare` wrote of a study."""
    path = stores.folder(name) / "results" / "summary.json"
    if not path.is_file() or not figure_path(stores, name).is_file():
        raise BadData(f"study {name} has no {path.name} in {path.parent}; run it to its end, or: clusterlora compare --name {name}")
    return json.loads(path.read_text(encoding="utf-8"))


def section(study: Study, found: Document, stores: Stores) -> str:
    """Return one study as Markdown."""
    summary = (stores.folder(study.name) / "results" / "summary.md").read_text(encoding="utf-8")
    signal = stores.studies.metadata(study.name, PersonaSignal)
    seconds = sum(seconds_by_phase(read_state(study.name, stores).seconds).values())
    parts = [
        f"## {study.name}\n",
        "\n".join(setting(study, stores)) + "\n",
        f"Its stages took {seconds / 60:.0f} minutes, summed over workers.\n",
    ]
    if signal is not None:
        parts += ["### What the data promised\n", signal_markdown(signal)]
    parts += ["### The gate\n", gate(study, stores)]
    parts += ["### The comparison\n", summary, f"![means with intervals, every persona, every cluster]({study.name}.png)\n"]
    parts += ["### What the mission asked\n", criteria(found), "\n".join(f"- {sentence}" for sentence in findings(found)) + "\n"]
    return "\n".join(parts)


def unstudied(file: str) -> str:
    """Return the signal of a data set that was not studied."""
    found = signal_of_data(Study(data=DataSettings(source="table", path=file)), SilentLog())
    return f"## What `{Path(file).name}` would promise\n\n{signal_markdown(found)}"


def setting(study: Study, stores: Stores) -> Iterator[str]:
    """Yield, as list items, what was studied and how."""
    data, recipe = study.data, study.recipe
    dataset = stores.studies.dataset(study.name)
    shares = data.synthetic
    invented = (
        f"invented (of what an answer leaves open, {shares.cluster_share:.0%} is the cluster's, {shares.persona_share:.0%} "
        f"the person's own, {shares.noise_share:.0%} noise; seed {shares.seed})"
    )
    source = invented if data.source == "synthetic" else f"read from `{Path(data.path or data.source).name}`"
    yield f"- {len(dataset.personas)} people, {source}; dialogues each: {data.train} train, {data.val} val, {data.test} test"
    trainings = "one training" if study.seeds == 1 else f"{study.seeds} trainings"
    yield (
        f"- base model {cell(study.model.base)}; rank {recipe.rank}, alpha {recipe.alpha:g}, {recipe.epochs} epochs, "
        f"batch {recipe.batch_size}, learning rate {recipe.learning_rate:g}; {trainings} of every adapter"
    )
    if clustering := stores.studies.clustering(study.name):
        quality = "".join(f", {name} {value:.2f}" for name, value in clustering.quality)
        agreement = stores.studies.metadata(study.name, TruthAgreement)
        truth = "" if agreement is None else f"; adjusted Rand index with the planted clusters {agreement.adjusted_rand_index:.2f}"
        yield f"- clusters of {', '.join(map(str, clustering.sizes))} people by `{clustering.algorithm}`{quality}{truth}"


def gate(study: Study, stores: Stores) -> str:
    """Return the verdicts, or that none was asked for."""
    verdicts = stores.studies.verdicts(study.name)
    if not verdicts:
        return "No gate was judged: the steps were run one by one.\n"
    return "\n".join(verdict_markdown(verdict).replace("## Gate", "#### Gate", 1) for verdict in verdicts)


def criteria(found: Document) -> str:
    """Return, criterion by criterion, what the mission asks, and what cluster adapters and the champion reached."""
    if found["headline"] != "embedding_similarity" or found["reference"] is None:
        return "The mission's criteria are about embedding similarity against unified, which this study does not measure.\n"
    methods = {record["method"]: record for record in found["methods"]}
    names = [name for name in dict.fromkeys(("cluster", found["champion"])) if name in methods and name != found["reference"]]
    if not names:
        return "No cluster adapter was compared, and no method beats unified: none of the mission's criteria can be met.\n"
    rows = [(name, asked, value, "met" if met else "**not met**") for name in names for asked, value, met in judged(methods[name], found)]
    return table(("method", "asked", "reached on test items", "verdict"), rows, right=(False, False, True, False))


def judged(record: Document, found: Document) -> Iterator[tuple[str, str, bool]]:
    """Yield (what is asked, what was reached, whether that suffices) for one method."""
    similarity, gain, wins = record["embedding_similarity"], record[f"vs_{found['reference']}"], record["win_rate"]
    interval = f"[{100 * record['ci_low']:+.2f}, {100 * record['ci_high']:+.2f}]"
    is_better = record["outcome"] == "better"
    yield f"above {found['reference']}, shown by interval and test", f"{100 * gain:+.2f} points {interval}", is_better
    yield _above("mean similarity above", ASKED["mean_similarity"], similarity)
    yield _above("worst persona above", ASKED["worst_persona"], record["worst_persona"])
    yield f"at least {ASKED['share_improved']:.0%} of the personas improved", f"{wins:.1%}", wins >= ASKED["share_improved"]
    yield f"mean similarity of {HOPED:.0%} to 88%, the reference study's hope", f"{similarity:.2%}", similarity >= HOPED


def _above(words: str, threshold: float, value: float) -> tuple[str, str, bool]:
    return f"{words} {threshold:.0%}", f"{value:.2%}", value > threshold


def findings(found: Document) -> Iterator[str]:
    """Yield what the numbers say, method by method against the reference, and control by control."""
    reference, metric = found["reference"], METRICS[found["headline"]]
    tested = [record for record in found["methods"] if record["p_holm"] is not None]
    for words, chosen in (
        (f"Shown to beat {reference}", [r for r in tested if r["outcome"] == "better"]),
        (f"Shown to do worse than {reference}", [r for r in tested if r["outcome"] == "worse"]),
        (f"Equivalent to {reference} within {metric.format(found['margin'])}", [r for r in tested if r["outcome"] == "equivalent"]),
        (f"Not told apart from {reference}, too few people and items to know", [r for r in tested if r["outcome"] == "undecided"]),
    ):
        if chosen:
            yield f"{words}: " + ", ".join(f"{r['method']} ({metric.format(r[f'vs_{reference}'], signed=True)})" for r in chosen) + "."
    for contrast in found["contrasts"]:
        mean, low, high = (metric.format(contrast["difference"][name], signed=True) for name in ("mean", "ci_low", "ci_high"))
        outcome = OUTCOMES[contrast["difference"]["outcome"]]
        yield f"{contrast['method']} against {contrast['other']}: {mean} [{low}, {high}], {outcome}."
    costs = {record["method"]: record["prompt_tokens"] for record in found["methods"] if "prompt_tokens" in record}
    if reference in costs and "few_shot" in costs:
        yield (
            f"few_shot reads {costs['few_shot']:.0f} prompt tokens for an answer, {reference} {costs[reference]:.0f}: "
            f"{costs['few_shot'] / costs[reference]:.1f} times as many."
        )


if __name__ == "__main__":
    raise SystemExit(main())
