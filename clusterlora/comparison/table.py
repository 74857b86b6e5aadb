"""A comparison as tables: the files summary, per_persona, per_cluster and rows, and the console table.

CSV and JSON hold raw values (similarities and shares in 0..1); Markdown and console show percent.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from clusterlora.comparison.breakdown import cluster_records, persona_records
from clusterlora.comparison.result import Comparison, Contrast, MethodResult, PairedDifference
from clusterlora.csv_text import csv_text
from clusterlora.durable import write_durably
from clusterlora.evaluation.markdown import markdown_table
from clusterlora.evaluation.metrics import METRICS
from clusterlora.values import EvaluationRow


def write_tables(comparison: Comparison, rows: Sequence[EvaluationRow], folder: Path, *, more: str = "") -> None:
    """Write summary.csv, .json and .md, per_persona.csv, per_cluster.csv and rows.csv (every answer) into the folder, each atomically.

    `more` is Markdown to append to summary.md.
    """
    write_durably(folder / "summary.csv", csv_text(summary_records(comparison)).encode())
    write_durably(
        folder / "summary.json", (json.dumps(_document(comparison), indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
    )
    write_durably(folder / "summary.md", (markdown(comparison) + more).encode())
    write_durably(folder / "per_persona.csv", csv_text(persona_records(comparison)).encode())
    write_durably(folder / "per_cluster.csv", csv_text(cluster_records(comparison)).encode())
    write_durably(folder / "rows.csv", csv_text(row_records(rows, comparison.metrics)).encode())


def summary_records(comparison: Comparison) -> list[dict[str, Any]]:
    """Return one flat record per method, best first; differences are None without a reference."""
    return [_record(comparison, result) for result in comparison.methods]


def markdown(comparison: Comparison) -> str:
    """Return the verdict, the summary table, the reference points and the mean of every method in every cluster."""
    metric = METRICS[comparison.headline]
    header = (*_columns(comparison), "worst_persona_id")
    rows = [(*_cells(comparison, result), result.worst_persona_id) for result in comparison.methods]
    tails = [
        (
            result.method,
            normalised(comparison, result),
            *(metric.format(value) for value in (result.worst_persona, result.worst_shrunken, result.p5)),
        )
        for result in comparison.methods
    ]
    points = [(name, meaning, metric.format(value)) for name, meaning, value in reference_points(comparison)]
    clusters = [f"cluster {cluster} ({size})" for cluster, size in comparison.cluster_sizes.items()]
    by_cluster = [
        (result.method, *(metric.format(result.by_cluster[cluster]) for cluster in comparison.cluster_sizes))
        for result in comparison.methods
    ]
    return (
        f"**{comparison.sentence}**\n\n"
        + markdown_table(header, rows, right=(False, *(True for _ in header[1:-1]), False))
        + f"\n{legend(comparison)}\n\n"
        + _section(
            "Methods beside their controls, and the champion beside the runner-up, p corrected over these:",
            *contrast_rows(comparison),
            CONTRAST_NUMERIC,
        )
        + _section(CLUSTERS_NOTE, *cluster_rows(comparison), ())
        + f"The scale, in {metric.label}:\n\n"
        + markdown_table(("point", "what it scores", comparison.headline), points, right=(False, False, True))
        + f"\n{_no_room(comparison)}Where each method lies on it (0 at the floor, 1 at the ceiling), and its worst personas: the worst "
        "one, the worst one once means are shrunk for their few items, and the 5th percentile:\n\n"
        + markdown_table(("method", "normalised", "worst_persona", "worst_shrunken", "p5"), tails, right=(False, True, True, True, True))
        + f"\n{metric.label[0].upper()}{metric.label[1:]} by cluster (personas in it):\n\n"
        + markdown_table(("method", *clusters), by_cluster, right=(False, *(True for _ in clusters)))
    )


def normalised(comparison: Comparison, result: MethodResult) -> str:
    """Return where a method lies between floor and ceiling, in words where that is no position: worse than the floor, or without room."""
    if comparison.is_worse_than_floor(result):
        return "worse than floor"
    if result.normalised is None:
        return "-" if comparison.floor is None else "no room"
    return f"{result.normalised:.3f}"


def _no_room(comparison: Comparison) -> str:
    """Return a sentence, with a space after it, where floor and ceiling are too close for positions between them; else an empty string."""
    if comparison.floor is None or comparison.has_room:
        return ""
    margin = METRICS[comparison.headline].format(comparison.margin)
    return f"The scale has no room: the ceiling is not better than the floor by more than {margin}. "


def legend(comparison: Comparison) -> str:
    """Return the legend of the table of methods."""
    star = "★ is the champion" if comparison.champion is not None else "There is no champion"
    return (
        f"{star}. {cut_legend(comparison)}Intervals are 95%: two-level paired bootstrap, {comparison.draws} draws"
        f"{', the variance of training seeds included' if comparison.n_seeds > 1 else ''}, and Wilson's, in brackets, for the share of "
        "personas won; p is Wilcoxon's signed-rank test with Holm's correction over the methods that could be champion, and apart from "
        "them over base model and controls. Better and worse are shown by interval and test. What is not told apart is equivalent when it "
        f"lies within {METRICS[comparison.headline].format(comparison.margin)} by two one-sided tests, and undecided otherwise: then "
        "the difference is given that these personas and items show four times in five."
    )


def cut_legend(comparison: Comparison) -> str:
    """Return what the dagger of `marks` says, by method, with a space after it; nothing where no method has one."""
    if not any(counts.is_marked for counts in comparison.cut.values()):
        return ""
    shares = ", ".join(f"{method} {counts.share:.1%}" for method, counts in comparison.cut.items())
    references = max(counts.share_of_references for counts in comparison.cut.values())
    return (
        f"† marks scores of cut texts, by method the share of answers cut at evaluation.max_new_tokens: {shares}; {references:.1%} of the "
        "references are longer. "
    )


CONTRAST_NUMERIC = (False, False, False, True, True, True, True, False, True, True)
CLUSTERS_NOTE = (
    "People who share an adapter share its luck. Beside the interval that takes personas as independent stands, where some people share "
    "adapters, one that does not (CR2; Bell & McCaffrey 2002), and the gain in every cluster. Personalisation is claimed only outside of "
    "it."
)


def contrast_rows(comparison: Comparison) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return header and rows of the contrasts with controls and the runner-up; no rows without a verdict."""
    rows: list[tuple[str, ...]] = [
        (
            *(contrast.method, contrast.other, _role(comparison, contrast)),
            *_against(comparison, contrast.difference),
            _interval(comparison, contrast.difference.robust_low, contrast.difference.robust_high),
        )
        for contrast in comparison.contrasts
        if comparison.has_verdict
    ]
    return ("method", "against", "which is", "difference", *_AGAINST, _ROBUST), rows


def _role(comparison: Comparison, contrast: Contrast) -> str:
    if contrast.is_control:
        return "control"
    return "better mean" if comparison.is_ahead(contrast) else "runner-up"


def cluster_rows(comparison: Comparison) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return header and rows of each method's gain by cluster, with the interval that is robust to shared adapters where some share one.

    There are no rows with one cluster, or without a verdict.
    """
    metric = METRICS[comparison.headline]
    rows: list[tuple[str, ...]] = [
        (
            result.method,
            metric.format(difference.mean, signed=True),
            _interval(comparison, difference.ci_low, difference.ci_high),
            _interval(comparison, difference.robust_low, difference.robust_high),
            *(metric.format(gain, signed=True) for gain in difference.by_cluster.values()),
        )
        for result in comparison.methods
        if comparison.has_verdict and len(comparison.cluster_sizes) > 1 and (difference := result.vs_reference) is not None
    ]
    clusters = (f"cluster {cluster}" for cluster in comparison.cluster_sizes)
    return ("method", _versus(comparison), "95% over personas", _ROBUST, *clusters), rows


def _section(words: str, header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[bool]) -> str:
    """Return a table below a sentence; an empty string without rows."""
    return f"{words}\n\n{markdown_table(header, rows, right=right or (False, *(True for _ in header[1:])))}\n" if rows else ""


def _interval(comparison: Comparison, low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return "-"
    metric = METRICS[comparison.headline]
    return f"{metric.format(low, signed=True)} to {metric.format(high, signed=True)}"


def reference_points(comparison: Comparison) -> list[tuple[str, str, float]]:
    """Return (name, meaning, value) of the reference points on the headline's scale that the comparison has."""
    points: list[tuple[str, str, float | None]] = [
        ("floor", METRICS[comparison.headline].floor_is, comparison.floor),
        ("same-prompt floor", "another persona's reference for the most similar prompt", comparison.floor_same_prompt),
        ("oracle", comparison.oracle_is, comparison.oracle),
        ("ceiling", "each item's best method, picked on these items", comparison.ceiling),
    ]
    if routing := comparison.routing:
        points += [
            ("random routing", f"what {routing.method} would score by choosing blindly", routing.random),
            (
                "oracle routing",
                f"what {routing.method} would score by choosing each persona's best on half of its test dialogues, on the others",
                routing.oracle,
            ),
        ]
    return [(name, meaning, value) for name, meaning, value in points if value is not None]


def console(comparison: Comparison) -> Table:
    """Return the summary for a terminal: champion starred and bold, reference points and verdict in the caption."""
    metric = METRICS[comparison.headline]
    scale = " · ".join(f"{name} {metric.format(value)}" for name, _, value in reference_points(comparison))
    caption = Text(f"{scale}\n{comparison.sentence}")
    summary = Table(box=box.SIMPLE_HEAD, caption=caption, caption_justify="left", collapse_padding=True, pad_edge=False)
    for position, name in enumerate(_columns(comparison)):
        summary.add_column(name.replace("_", " "), justify="right" if position else "left", no_wrap=not position)
    for result in comparison.methods:
        style = "bold" if result.method == comparison.champion else ""
        # Text, not str, so that method names are not interpreted as markup.
        summary.add_row(*(Text(text) for text in _cells(comparison, result)), style=style)
    return summary


def _versus(comparison: Comparison) -> str:
    return f"vs_{comparison.reference or 'unified'}"


def _other_metrics(comparison: Comparison) -> list[str]:
    return [metric for metric in comparison.metrics if metric != comparison.headline and metric not in comparison.beside]


def _record(comparison: Comparison, result: MethodResult) -> dict[str, Any]:
    difference = result.vs_reference
    is_reference = result.method == comparison.reference
    return {
        "method": result.method,
        comparison.headline: result.means[comparison.headline],
        _versus(comparison): difference.mean if difference else 0.0 if is_reference else None,
        "ci_low": difference.ci_low if difference else None,
        "ci_high": difference.ci_high if difference else None,
        "p": difference.p if difference else None,
        "p_holm": difference.p_holm if difference else None,
        "win_rate": difference.win_rate if difference else None,
        "win_low": difference.win_low if difference else None,
        "win_high": difference.win_high if difference else None,
        "tie_rate": difference.tie_rate if difference else None,
        "loss_rate": difference.loss_rate if difference else None,
        "outcome": comparison.recorded(difference.outcome) if difference else None,
        "detectable": difference.detectable if difference else None,
        "robust_low": difference.robust_low if difference else None,
        "robust_high": difference.robust_high if difference else None,
        "worst_persona": result.worst_persona,
        "worst_persona_id": result.worst_persona_id,
        "worst_shrunken": result.worst_shrunken,
        "p5": result.p5,
        "normalised": result.normalised,
        "mean_low": result.mean_low,
        "mean_high": result.mean_high,
        **{metric: result.means[metric] for metric in comparison.metrics if metric != comparison.headline},
        **{
            f"{metric}_{_versus(comparison) if field == 'mean' else field}": getattr(result.beside.get(metric), field, None)
            for metric in comparison.beside
            for field in ("mean", "ci_low", "ci_high", "p_holm")
        },
        **{
            f"{metric}_outcome": comparison.recorded(against.outcome) if (against := result.beside.get(metric)) else None
            for metric in comparison.beside
        },
        "answers_cut": cut.share if (cut := comparison.cut.get(result.method)) else None,
        "references_cut": cut.share_of_references if cut else None,
        "shown": shown.chosen if (shown := comparison.shown.get(result.method)) else None,
        "shown_dropped": shown.share_dropped if shown else None,
        "n_personas": comparison.n_personas,
        "n_items": comparison.n_items,
        "champion": result.method == comparison.champion,
    }


def _document(comparison: Comparison) -> dict[str, Any]:
    return {
        "sentence": comparison.sentence,
        "champion": comparison.champion,
        "no_champion": asdict(comparison.no_champion) if comparison.no_champion else None,
        "same_answers": comparison.same_answers,
        "headline": comparison.headline,
        "reference": comparison.reference,
        "oracle": comparison.oracle,
        "n_with_one_dialogue": comparison.n_with_one_dialogue,
        "ceiling": comparison.ceiling,
        "floor": comparison.floor,
        "floor_same_prompt": comparison.floor_same_prompt,
        "routing": asdict(comparison.routing) if comparison.routing else None,
        "contrasts": [
            asdict(contrast) | {"difference": asdict(contrast.difference) | {"outcome": comparison.recorded(contrast.difference.outcome)}}
            for contrast in comparison.contrasts
        ],
        "n_personas": comparison.n_personas,
        "n_personas_left_out": comparison.n_personas_left_out,
        "n_items": comparison.n_items,
        "n_seeds": comparison.n_seeds,
        "bootstrap_draws": comparison.draws,
        "margin": comparison.margin,
        "beside": comparison.beside,
        "second_headline": comparison.second_headline,
        "gate": comparison.gate,
        "tuning": comparison.tuning,
        "cluster_sizes": comparison.cluster_sizes,
        "methods": [
            _record(comparison, result)
            | {"by_cluster": result.by_cluster, "by_persona": result.by_persona}
            | {"gain_by_cluster": result.vs_reference.by_cluster if result.vs_reference else None}
            for result in comparison.methods
        ],
    }


def _columns(comparison: Comparison) -> tuple[str, ...]:
    return (
        "method",
        comparison.headline,
        *comparison.beside,
        _versus(comparison),
        *_AGAINST,
        "worst_persona",
        *_other_metrics(comparison),
    )


def _cells(comparison: Comparison, result: MethodResult) -> tuple[str, ...]:
    metric = METRICS[comparison.headline]
    against = _against(comparison, result.vs_reference) if result.vs_reference else ("-",) * (1 + len(_AGAINST))
    return (
        result.method + marks(comparison, result.method),
        metric.format(result.means[comparison.headline]) + (" (worse than floor)" if comparison.is_worse_than_floor(result) else ""),
        *(METRICS[name].format(result.means[name]) for name in comparison.beside),
        *against,
        metric.format(result.worst_persona),
        *(METRICS[name].format(result.means[name]) for name in _other_metrics(comparison)),
    )


def marks(comparison: Comparison, method: str) -> str:
    """Return what stands after a method's name: a star for the champion, a dagger where many of its answers were cut."""
    is_cut = method in comparison.cut and comparison.cut[method].is_marked
    return (" ★" if method == comparison.champion else "") + (" †" if is_cut else "")


_ROBUST = "95% robust to shared adapters"
_AGAINST = ("ci_low", "ci_high", "p_holm", "outcome", "win / tie / loss")


def _against(comparison: Comparison, difference: PairedDifference) -> tuple[str, ...]:
    """Return the cells of a difference: its mean, then the columns of `_AGAINST`, which are empty without a verdict."""
    metric = METRICS[comparison.headline]
    if not comparison.has_verdict:
        return (metric.format(difference.mean, signed=True), *("too few" if name == "outcome" else "-" for name in _AGAINST))
    return (
        metric.format(difference.mean, signed=True),
        metric.format(difference.ci_low, signed=True),
        metric.format(difference.ci_high, signed=True),
        "<0.001" if difference.p_holm < 0.001 else f"{difference.p_holm:.3f}",
        outcome(comparison, difference),
        f"{' / '.join(difference.win_tie_loss)}% ({100 * difference.win_low:.0f}–{100 * difference.win_high:.0f})",
    )


def outcome(comparison: Comparison, difference: PairedDifference) -> str:
    """Return a short outcome; an undecided one names the smallest difference that the study could have detected."""
    if not comparison.has_verdict:
        return "too few"
    metric = METRICS[comparison.headline]
    if difference.outcome != "undecided":
        return difference.outcome
    return "undecided (none)" if difference.detectable is None else f"undecided (≥{metric.format(difference.detectable)})"


def row_records(rows: Iterable[EvaluationRow], metrics: Sequence[str]) -> list[dict[str, Any]]:
    """Return one flat record per method, training seed, persona and test item."""
    return [
        {
            "method": row.method,
            "seed": row.seed,
            "persona_id": row.persona_id,
            "cluster": row.cluster,
            "item_id": row.item_id,
            "prompt": row.prompt,
            "reference": row.reference,
            "text": row.text,
            **{metric: row.scores.get(metric) for metric in metrics},
        }
        for row in rows
    ]
