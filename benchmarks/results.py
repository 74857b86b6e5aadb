"""Writes docs/results.md from finished studies; every sentence and number is computed from their results.

python -m benchmarks.results mission shakespeare --null nulls --out docs
"""

import argparse
import json
import re
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
from clusterlora.evaluation.markdown import cell, markdown_table
from clusterlora.evaluation.metrics import METRICS
from clusterlora.gate.judged_cluster import words as judged_words
from clusterlora.gate.report import markdown as verdict_markdown
from clusterlora.metadata import ComparisonSummary, Provenance, TruthAgreement, Tuning
from clusterlora.persona_signal.measure import PersonaSignal
from clusterlora.persona_signal.summary import markdown as signal_markdown
from clusterlora.planning.cut import dialogues_each, studied_dataset
from clusterlora.planning.ladder import GATED, gated
from clusterlora.planning.study_state import StudyState, read_state
from clusterlora.ports.run_log import SilentLog
from clusterlora.ports.stores import Stores
from clusterlora.progress.timing import seconds_by_phase
from clusterlora.settings import DataSettings, Study
from clusterlora.stages.compare import figure_path
from clusterlora.stages.persona_signal import signal_of_data

Document = Mapping[str, Any]

MISSION_GATE = PRESETS["mission"]["gate"]
"""The mission's criteria for cluster adapters; a study's own gate may be more lenient."""
MISSION_HOPE = 0.86
"""Lower end of the mean similarity that the reference study hoped for (86-88 %)."""

PREFACE = """# Results

Written by `make results` from the studies below. The section of a study has its settings, what its data promised before training, whether
the gate passed, the comparison on test items, and which of the mission's criteria were met; that of studies in which nothing is personal,
how often they claim that something is. Either is made anew when its studies are run again, and says by which version.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("studies", nargs="*", metavar="STUDY", help="a study that has been compared")
    parser.add_argument(
        "--signal", action="append", default=[], metavar="FILE", help="a table of dialogues whose signal to measure; repeatable"
    )
    parser.add_argument(
        "--null", action="append", default=[], metavar="STUDY", help="a study whose people were permuted by study permute; repeatable"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for results.md and a figure per study")
    options = parser.parse_args(arguments)
    if not (options.studies or options.signal or options.null):
        parser.error("name a study, or give --signal or --null")
    try:
        print(write(options.studies, options.signal, options.null, open_local_stores(), options.out))
    except ClusterLoraError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def write(names: Sequence[str], files: Sequence[str], nulls: Sequence[str], stores: Stores, out: Path) -> Path:
    """Write results.md and the figures into `out` and return the path of the page; nothing is written unless every study has results.

    Sections that the page has of other studies stay as they are: a long study need not be run again for a short one.

    Args:
        names: finished studies, a section each.
        files: tables of dialogues without a study, whose persona signal is measured here.
        nulls: studies of which `study permute` counted the false claims.

    Raises:
        BadData: a study has not been compared, or not been permuted.
        UnknownName: there is no such study.
    """
    page = out / "results.md"
    made = [section(stores.studies.study(name), read_summary(name, stores), stores) for name in names]
    made += [permuted(name, stores) for name in nulls]
    made += [unstudied(file) for file in files]
    before = sections_of(page.read_text(encoding="utf-8")) if page.is_file() else {}
    sections = before | {text.partition("\n")[0]: text for text in made}
    for name in names:
        out.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(figure_path(stores, name), out / f"{name}.png")
    write_durably(page, (PREFACE + "\n" + "\n".join(text.rstrip("\n") + "\n" for text in sections.values())).encode())
    return page


def sections_of(page: str) -> dict[str, str]:
    """Return the sections of a page by their headings."""
    parts = re.split(r"^(?=## )", page, flags=re.MULTILINE)[1:]
    return {part.partition("\n")[0]: part for part in parts}


def read_summary(name: str, stores: Stores) -> Document:
    """Return the summary.json that `compare` wrote for a study."""
    path = stores.folder(name) / "results" / "summary.json"
    if not path.is_file() or not figure_path(stores, name).is_file():
        raise BadData(f"study {name} has no {path.name} in {path.parent}; run it to its end, or: clusterlora compare --name {name}")
    return json.loads(path.read_text(encoding="utf-8"))


def section(study: Study, summary: Document, stores: Stores) -> str:
    """Return the Markdown section of a study."""
    summary_markdown = (stores.folder(study.name) / "results" / "summary.md").read_text(encoding="utf-8")
    summary_markdown = re.sub(r"^#+ ", "#### ", summary_markdown, flags=re.MULTILINE)  # parts of this section
    signal = stores.studies.metadata(study.name, PersonaSignal)
    seconds = sum(seconds_by_phase(read_state(study.name, stores).seconds).values())
    parts = [
        f"## {study.name}\n",
        "\n".join(setting(study, stores, summary["n_seeds"])) + "\n",
        f"Its stages{version(study.name, stores)} took {seconds / 60:.0f} minutes, summed over workers.\n",
    ]
    if signal is not None:
        parts += ["### What the data promised\n", signal_markdown(signal)]
    parts += ["### The gate\n", gate(study, stores)]
    parts += ["### The comparison\n", summary_markdown, f"![means with intervals, every persona, every cluster]({study.name}.png)\n"]
    parts += ["### What the mission asked\n", criteria(summary), "\n".join(f"- {sentence}" for sentence in findings(summary)) + "\n"]
    return "\n".join(parts)


def permuted(name: str, stores: Stores) -> str:
    """Return the section on studies in which nothing is personal, beside the study that they permute, if that was run."""
    path = stores.folder(name) / "results" / "null.md"
    if not path.is_file():
        raise BadData(f"study {name} has no {path.name} in {path.parent}; run: clusterlora study permute --name {name}")
    first = stores.studies.study(f"{name}-null-01")
    rate = path.read_text(encoding="utf-8")
    exists = name in {known for known, _, _ in stores.studies.studies()}
    own = stores.studies.metadata(name, ComparisonSummary) if exists else None
    beside = [] if own is None else [_unpermuted(own)]
    before = f"Studies{version(first.name, stores)}, with everybody's dialogues exchanged. The first of them, its data as before that:\n"
    return "\n".join((f"## {name}: nothing is personal\n", before, "\n".join(setting(first, stores, first.seeds)) + "\n", *beside, rate))


def version(name: str, stores: Stores) -> str:
    """Return by which clusterlora a study was run, as words with a space before them; nothing where that is not known."""
    provenance = stores.studies.metadata(name, Provenance)
    if provenance is None:
        return ""
    return f" of clusterlora {provenance.clusterlora_version}{f' at {provenance.git_revision[:12]}' if provenance.git_revision else ''}"


def _unpermuted(summary: ComparisonSummary) -> str:
    """Return what the study says whose dialogues were not exchanged, and what its rate of false claims is then worth."""
    found = (
        "It claims personalisation, so that such studies do find it."
        if summary.claims_personalisation
        else "It claims no personalisation, so that the rate below says how often such a study is wrong, and not how often it is right."
    )
    return f"The same study with everybody's own dialogues says: *{summary.sentence}* {found}\n"


def unstudied(file: str) -> str:
    """Return the section on the persona signal of a data set without a study."""
    measured, _ = signal_of_data(Study(data=DataSettings(source="table", path=file)), SilentLog())
    return f"## What `{Path(file).name}` would promise\n\n{signal_markdown(measured)}"


def setting(study: Study, stores: Stores, n_seeds: int) -> Iterator[str]:
    """Yield the data, training and clustering of a study as list items; `n_seeds` trainings are compared."""
    data, recipe = study.data, study.recipe
    dataset = studied_dataset(study.name, stores)
    shares = data.synthetic
    synthetic = (
        f"invented (of what an answer leaves open, {shares.cluster_share:.0%} is the cluster's, {shares.persona_share:.0%} "
        f"the person's own, {shares.noise_share:.0%} noise; seed {shares.seed})"
    )
    source = synthetic if data.source == "synthetic" else f"read from `{Path(data.path or data.source).name}`"
    yield f"- {len(dataset.personas)} people, {source}; dialogues each: {dialogues_each(dataset)}"
    trainings = "one training" if n_seeds == 1 else f"{n_seeds} trainings"
    tuning = stores.studies.metadata(study.name, Tuning)
    tuned = f"its own recipe, the first of {len(tuning.recipes)} that methods tried: " if tuning else ""
    yield (
        f"- base model {cell(str(study.model.base))}; {tuned}rank {recipe.rank}, alpha {recipe.alpha:g}, {recipe.epochs} epochs, "
        f"batch {recipe.batch_size}, learning rate {recipe.learning_rate:g}; {trainings} of every adapter"
    )
    if clustering := stores.studies.clustering(study.name):
        quality = "".join(f", {name} {value:.2f}" for name, value in clustering.quality)
        agreement = stores.studies.metadata(study.name, TruthAgreement)
        truth = "" if agreement is None else f"; adjusted Rand index with the planted clusters {agreement.adjusted_rand_index:.2f}"
        yield f"- clusters of {', '.join(map(str, clustering.sizes))} people by `{clustering.algorithm}`{quality}{truth}"


def gate(study: Study, stores: Stores) -> str:
    """Return the verdicts of the gate, or a sentence on why there are none."""
    state = read_state(study.name, stores)
    verdicts = state.verdicts
    if not verdicts:
        return f"{_no_gate(study, state)}\n"
    return "\n".join(verdict_markdown(verdict).replace("## Gate", "#### Gate", 1) for verdict in verdicts)


def _no_gate(study: Study, state: StudyState) -> str:
    """Return why nothing was judged."""
    # The state has no methods that need clusters where none were found.
    if GATED not in study.methods:
        return f"There is no gate: the study does not compare {GATED}, which it judges."
    if gated(state) or state.clustering is None:
        return "No gate was judged: the steps were run one by one."
    if state.start is not None:
        return "There is no gate: people stay in the clusters of the study that this one goes on from."
    return judged_words(state.clustering.sizes, state.settings.clustering)


def criteria(summary: Document) -> str:
    """Return a table of the mission's criteria and what cluster adapters and the champion reached."""
    if _is_too_small(summary):
        return "The study is too small for a verdict: whether the mission's criteria are met is not known.\n"
    if summary["headline"] != "embedding_similarity" or summary["reference"] is None:
        return "The mission's criteria are about embedding similarity against unified, which this study does not measure.\n"
    methods = {record["method"]: record for record in summary["methods"]}
    names = [name for name in dict.fromkeys(("cluster", summary["champion"])) if name in methods and name != summary["reference"]]
    if not names:
        return "No cluster adapter was compared, and no method is champion over unified: none of the mission's criteria can be met.\n"
    rows = [
        (name, criterion, value, "met" if met else "**not met**")
        for name in names
        for criterion, value, met in judged(methods[name], summary)
    ]
    return markdown_table(("method", "asked", "reached on test items", "verdict"), rows, right=(False, False, True, False))


def _is_too_small(summary: Document) -> bool:
    return summary["no_champion"] is not None and summary["no_champion"]["reason"] == "too few"


def judged(record: Document, summary: Document) -> Iterator[tuple[str, str, bool]]:
    """Yield (criterion, value reached, whether it is met) for one method."""
    similarity, gain, wins = record["embedding_similarity"], record[f"vs_{summary['reference']}"], record["win_rate"]
    interval = f"[{100 * record['ci_low']:+.2f}, {100 * record['ci_high']:+.2f}]"
    is_better = record["outcome"] == "better"
    yield f"above {summary['reference']}, shown by interval and test", f"{100 * gain:+.2f} points {interval}", is_better
    yield _above("mean similarity above", MISSION_GATE["mean_similarity"], similarity)
    yield _above("worst persona above", MISSION_GATE["worst_persona"], record["worst_persona"])
    yield f"at least {MISSION_GATE['share_improved']:.0%} of the personas improved", f"{wins:.1%}", wins >= MISSION_GATE["share_improved"]
    yield f"mean similarity of {MISSION_HOPE:.0%} to 88%, the reference study's hope", f"{similarity:.2%}", similarity >= MISSION_HOPE


def _above(words: str, threshold: float, value: float) -> tuple[str, str, bool]:
    return f"{words} {threshold:.0%}", f"{value:.2%}", value > threshold


def findings(summary: Document) -> Iterator[str]:
    """Yield sentences on each outcome against the reference, on each contrast and on prompt cost."""
    reference, metric = summary["reference"], METRICS[summary["headline"]]
    has_verdict = not _is_too_small(summary)
    tested = [record for record in summary["methods"] if has_verdict and record["p_holm"] is not None]
    for words, records in (
        (f"Shown to beat {reference}", [r for r in tested if r["outcome"] == "better"]),
        (f"Shown to do worse than {reference}", [r for r in tested if r["outcome"] == "worse"]),
        (f"Equivalent to {reference} within {metric.format(summary['margin'])}", [r for r in tested if r["outcome"] == "equivalent"]),
        (f"Not told apart from {reference}, too few people and items to know", [r for r in tested if r["outcome"] == "undecided"]),
    ):
        if records:
            yield f"{words}: " + ", ".join(f"{r['method']} ({metric.format(r[f'vs_{reference}'], signed=True)})" for r in records) + "."
    for contrast in summary["contrasts"] if has_verdict else ():
        mean, low, high = (metric.format(contrast["difference"][name], signed=True) for name in ("mean", "ci_low", "ci_high"))
        outcome = OUTCOMES[contrast["difference"]["outcome"]]
        yield f"{contrast['method']} against {contrast['other']}: {mean} [{low}, {high}], {outcome}."
    costs = {record["method"]: record["prompt_tokens"] for record in summary["methods"] if "prompt_tokens" in record}
    if reference in costs and "few_shot" in costs:
        yield (
            f"few_shot reads {costs['few_shot']:.0f} prompt tokens for an answer, {reference} {costs[reference]:.0f}: "
            f"{costs['few_shot'] / costs[reference]:.1f} times as many."
        )


if __name__ == "__main__":
    raise SystemExit(main())
