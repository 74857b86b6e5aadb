"""The panels of the report as HTML fragments. Every number is in the text; figures and sorting need the script."""

from collections.abc import Iterable, Sequence

from clusterlora.clustering.summary import UNSTABLE, sentence
from clusterlora.comparison import appendix_words, new_personas_words
from clusterlora.comparison.result import Comparison, MethodResult
from clusterlora.comparison.sentence import beside_reference, explain
from clusterlora.comparison.table import CLUSTERS_NOTE, CONTRAST_NUMERIC, cluster_rows, contrast_rows, legend, marks, outcome
from clusterlora.errors import counted
from clusterlora.evaluation import memorisation_words
from clusterlora.evaluation.memorisation import Memorisation
from clusterlora.evaluation.metrics import METRICS
from clusterlora.gate.report import sample
from clusterlora.persona_signal.measure import PersonaSignal
from clusterlora.persona_signal.summary import basis, recognitions, shares
from clusterlora.persona_signal.summary import verdict as verdict_on_signal
from clusterlora.report.data import TRIAL_COLUMNS, ReportData
from clusterlora.report.markup import html_table, interval_mark, pairs, text
from clusterlora.values import Clustering, Criterion, Verdict

"""Adjusted Rand index below which the report warns of an unstable partition."""

_MOST_NAMED = 8
_ONE = ((1, 0.0, 1.0),)
"""The beginning of every curve over k: one cluster, which predicts nothing and is always found again."""


def verdict(data: ReportData) -> str:
    """Return the verdict sentence and the key numbers of the study."""
    comparison = data.comparison
    metric = METRICS[comparison.headline]
    unit = "%" if metric.percent else ""
    n_left_out = comparison.n_personas_left_out
    numbers = [
        _champion(comparison),
        _lead(comparison),
        ("personas", f"{comparison.n_personas}", f"{n_left_out} left out" if n_left_out else counted(comparison.n_items, "test item")),
        ("oracle", metric.format(comparison.oracle) + unit, comparison.oracle_is),
    ]
    if comparison.floor is not None:
        numbers.append(("floor", metric.format(comparison.floor) + unit, f"what {metric.floor_is} scores"))
    if data.verdicts:
        passed = next((verdict for verdict in data.verdicts if verdict.passed), None)
        numbers.append(
            ("gate", "passed" if passed else "refused", f"{len(data.verdicts)} tried" + (f", by {passed.rung}" if passed else ""))
        )
    tiles = "".join(
        f'<div class="tile"><div class="name">{text(name)}</div><div class="value">{text(value)}</div>'
        f'<div class="note">{text(note)}</div></div>'
        for name, value, note in numbers
    )
    return f'<p class="sentence">{text(comparison.sentence)}</p><div class="tiles">{tiles}</div>'


def warnings(sentences: Sequence[str]) -> str:
    """Return what speaks against the study's models on its data, where anything does."""
    return "".join(f'<p class="warning" role="note">{text(sentence[:1].upper() + sentence[1:])}.</p>' for sentence in sentences)


def _champion(comparison: Comparison) -> tuple[str, str, str]:
    """Return the champion with its mean, or that there is none."""
    if comparison.champion is None:
        return ("champion", "none", "the verdict above says why")
    metric = METRICS[comparison.headline]
    mean = metric.format(comparison.method(comparison.champion).means[comparison.headline])
    return ("champion", comparison.champion, f"{metric.label} {mean}{'%' if metric.percent else ''}")


def _lead(comparison: Comparison) -> tuple[str, str, str]:
    """Return the difference behind the verdict: that of the method it tells of beside the reference."""
    metric = METRICS[comparison.headline]
    lead = beside_reference(comparison)
    if lead is None or lead.vs_reference is None:
        return ("difference", "-", "nothing to test against")
    difference = lead.vs_reference
    if not comparison.has_verdict:
        mean = metric.format(difference.mean, signed=True)
        return (f"{lead.method} against {comparison.reference}", mean, "too few people or items to judge")
    mean, low, high = (metric.format(v, signed=True) for v in (difference.mean, difference.ci_low, difference.ci_high))
    return (f"{lead.method} against {comparison.reference}", mean, f"95% interval {low} to {high}; {explain(comparison, difference)}")


def signal(measured: PersonaSignal) -> str:
    """Return how much the data says about personas beyond their prompts."""
    rows = [[text(cell) for cell in row] for row in recognitions(measured)]
    return (
        f'<p class="sentence">{text(verdict_on_signal(measured))}</p>'
        + html_table(["recognised", "correct", "95% interval", "chance"], rows, numeric=[False, True, True, True], caption="recognition")
        + pairs(shares(measured))
        + f'<p class="lead">{text(basis(measured))}</p>'
    )


def privacy(memory: Memorisation) -> str:
    """Return what shared adapters have memorised of the dialogues that they were trained on."""
    parts = (
        f'<p class="lead">{text(note)}</p>'
        + html_table(list(header), [[text(cell) for cell in row] for row in rows], numeric=list(numeric), caption=title)
        for title, note, header, rows, numeric in memorisation_words.tables(memory)
    )
    return f'<p class="sentence">{text(memorisation_words.sentence(memory))}</p>' + "".join(parts)


def new_personas(data: ReportData) -> str:
    """Return the results of personas that no adapter was trained on, or how to measure them."""
    results = data.newcomers
    if results is None:
        return f'<p class="note">{text(new_personas_words.off(data.held_out_share))}</p>'
    rows = [[text(cell) for cell in row] for row in new_personas_words.rows(results)]
    return (
        f'<p class="sentence">{text(new_personas_words.sentence(results))}</p>'
        + html_table(new_personas_words.HEADER, rows, numeric=new_personas_words.NUMERIC, caption="new personas")
        + f'<p class="lead">{text(new_personas_words.basis(results))}</p>'
    )


def refresh(data: ReportData) -> str:
    """Return what a refresh found: whether the champion moves, forgetting, drift."""
    rows = [[text(cell) for cell in row] for row in data.refresh]
    return html_table(["what", "found"], rows, numeric=[False, False], caption="what the refresh found")


def imported(data: ReportData) -> str:
    """Return the imported scores of other scripts, kept apart from the study's own measurements."""
    return (
        '<p class="lead">As the older scripts wrote them. Their items, answers and metrics are not this study\'s: '
        "these numbers are part of no statistic.</p>"
        + html_table(
            ["file", "metric", "personas", "mean"],
            [[text(cell) for cell in row] for row in data.imported],
            numeric=[False, False, True, True],
            caption="imported scores",
        )
    )


def _words(name: object) -> str:
    return str(name).replace("_", " ")


def methods(comparison: Comparison) -> str:
    """Return the table of methods, best first; clicking a heading sorts it."""
    metric = METRICS[comparison.headline]
    others = [name for name in comparison.metrics if name != comparison.headline and name not in comparison.beside]
    reference = comparison.reference
    ends = [v for r in comparison.methods if r.vs_reference for v in (r.vs_reference.ci_low, r.vs_reference.ci_high)]
    scale = (min(0.0, *ends), max(0.0, *ends)) if ends else (0.0, 0.0)
    header = ["method", metric.label, *(METRICS[name].label for name in comparison.beside), "95% interval"]
    if reference:
        header += [f"against {reference}", "its 95% interval", "", "p (Holm)", "outcome", "win / tie / loss"]
    header += ["worst persona", "5th percentile", *(METRICS[name].label for name in others)]
    rows: list[str] = []
    for result in comparison.methods:
        kind = "champion" if result.method == comparison.champion else "reference" if result.method == reference else ""
        cells = [_sortable(result.method + marks(comparison, result.method), result.method, number=False)]
        mean, below = result.means[comparison.headline], comparison.is_worse_than_floor(result)
        cells += [_sortable(metric.format(mean) + (" (worse than floor)" if below else ""), mean)]
        cells += [_number(name, result.means[name]) for name in comparison.beside]
        interval = f"{metric.format(result.mean_low)} to {metric.format(result.mean_high)}" if comparison.has_verdict else "-"
        cells += [_sortable(interval, result.mean_low)]
        cells += _against(comparison, result, scale) if reference else []
        worst = _sortable(f"{metric.format(result.worst_persona)}", result.worst_persona, title=result.worst_persona_id)
        cells += [worst, _number(comparison.headline, result.p5), *(_number(name, result.means[name]) for name in others)]
        rows.append(f'<tr class="{kind}">{"".join(cells)}</tr>')
    head = "".join(
        f'<th scope="col"{"" if index == 0 else " class=number"}>'
        + (f'<button type="button">{text(name)}</button>' if name else "")
        + "</th>"
        for index, name in enumerate(header)
    )
    unit = "Similarities and shares are percent. " if metric.percent else ""
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="table of methods"><table class="sortable">'
        '<caption class="unseen">Methods, the best first; the headings sort</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
        f'<p class="note">{unit}{text(legend(comparison))}</p>' + _contrasts(comparison) + _by_clusters(comparison)
    )


def _contrasts(comparison: Comparison) -> str:
    """Return the contrasts with controls and the runner-up; empty when there are none."""
    header, rows = contrast_rows(comparison)
    if not rows:
        return ""
    cells = [[text(cell) for cell in row] for row in rows]
    return "<h3>Beside controls and runner-up</h3>" + html_table(header, cells, numeric=CONTRAST_NUMERIC, caption="controls and runner-up")


def _by_clusters(comparison: Comparison) -> str:
    """Return every method's gain by cluster, with the interval robust to shared adapters; empty with one cluster."""
    header, rows = cluster_rows(comparison)
    if not rows:
        return ""
    cells = [[text(cell) for cell in row] for row in rows]
    return f'<h3>By cluster</h3><p class="note">{text(CLUSTERS_NOTE)}</p>' + html_table(
        header, cells, numeric=[False, *(True for _ in header[1:])], caption="gains by cluster"
    )


def _against(comparison: Comparison, result: MethodResult, scale: tuple[float, float]) -> list[str]:
    metric = METRICS[comparison.headline]
    difference = result.vs_reference
    if difference is None:
        return [_sortable("-", None)] * 2 + ["<td></td>"] + [_sortable("-", None)] * 3
    if not comparison.has_verdict:
        mean = _sortable(metric.format(difference.mean, signed=True), difference.mean)
        outcome_cell = _sortable(outcome(comparison, difference), outcome(comparison, difference), number=False)
        return [mean, _sortable("-", None), "<td></td>", _sortable("-", None), outcome_cell, _sortable("-", None)]
    low, high = difference.ci_low, difference.ci_high
    kind = {"better": "good", "worse": "bad"}.get(difference.outcome, "even")
    return [
        _sortable(metric.format(difference.mean, signed=True), difference.mean),
        _sortable(f"{metric.format(low, signed=True)} to {metric.format(high, signed=True)}", low),
        f"<td>{interval_mark(difference.mean, low, high, threshold=0.0, scale=scale, kind=kind)}</td>",
        _sortable("<0.001" if difference.p_holm < 0.001 else f"{difference.p_holm:.3f}", difference.p_holm),
        _sortable(outcome(comparison, difference), difference.outcome, number=False),
        _sortable(f"{' / '.join(difference.win_tie_loss)}%", difference.win_rate),
    ]


def _number(metric: str, value: float) -> str:
    return _sortable(METRICS[metric].format(value), value)


def _sortable(shown: str, value: object, *, number: bool = True, title: str = "") -> str:
    by = "" if value is None else f' data-value="{text(value)}"'
    tip = f' title="{text(title)}"' if title else ""
    return f"<td{' class=number' if number else ''}{by}{tip}>{text(shown)}</td>"


def clusters(clustering: Clustering) -> str:
    """Return the clusters, the quality of the partition, and a warning when it is unstable."""
    quality = dict(clustering.quality)
    low = {name: value for name, value in quality.items() if name.startswith("ari") and value < UNSTABLE}
    measured = text(", ".join(f"{_words(name)} {value:.2f}" for name, value in low.items()))
    warning = (
        f'<p class="warning" role="note"><strong>These clusters are unstable</strong>: {measured}, '
        f"below {UNSTABLE:.1f}. Another seed or another sample of the same people's answers would group them differently.</p>"
        if low
        else ""
    )
    rows = [[text(k), text(len(members)), _people(members)] for k, members in enumerate(clustering.members)]
    tried = [[text(k), f"{100 * predicted:.2f} %", f"{stability:.2f}"] for k, predicted, stability in clustering.curve]
    # Curves of versions that chose k by silhouette begin at 2 and have other columns.
    curve = (
        html_table(["k", "predicted", "stability"], tried, numeric=[True] * 3, caption="k tried") if clustering.curve[:1] == _ONE else ""
    )
    quality_pairs = [("algorithm", clustering.algorithm), *((_words(name), f"{value:.2f}") for name, value in clustering.quality)]
    return (
        warning
        + f'<p class="lead">{text(sentence(clustering))}</p>'
        + pairs(quality_pairs)
        + html_table(["cluster", "personas", "who"], rows, numeric=[True, True, False], caption="clusters")
        + '<p class="note">Silhouette: 1 is well apart, 0 is touching. ari seeds and ari bootstraps: agreement (adjusted Rand index) with '
        "partitions of other seeds and of resampled answers; 0.8 and more is stable. Predicted: the share of held-out train answers, "
        "of what prompts leave open of them, that the other members of a cluster predict.</p>" + curve
    )


def _people(members: Iterable[str]) -> str:
    ids = list(members)
    shown = ", ".join(text(persona_id) for persona_id in ids[:_MOST_NAMED])
    if len(ids) <= _MOST_NAMED:
        return shown
    rest = ", ".join(text(persona_id) for persona_id in ids[_MOST_NAMED:])
    return f"<details><summary>{shown} and {len(ids) - _MOST_NAMED} more</summary>{rest}</details>"


def gate(verdicts: Sequence[Verdict]) -> str:
    """Return every verdict of the gate, criterion by criterion."""
    return "".join(_rung(verdict) for verdict in verdicts)


def _rung(verdict: Verdict) -> str:
    outcome = "passed" if verdict.passed else "refused"
    rows = [[*_criterion(criterion)] for criterion in verdict.criteria]
    header = ["criterion", "value", "95% interval", "asked", "", "verdict", "why"]
    return (
        f'<h3>{text(verdict.rung)} <span class="badge {"good" if verdict.passed else "bad"}">{outcome}</span></h3>'
        f'<p class="lead">{text(verdict.adapter)}, judged on {text(sample(verdict))}.</p>'
        + html_table(header, rows, numeric=[False, True, True, True, False, False, False], caption=f"gate, {verdict.rung}")
        + "".join(f'<p class="lead">{text(note)}</p>' for note in verdict.notes)
    )


def _criterion(criterion: Criterion) -> Iterable[str]:
    ends = [v for v in (criterion.value, criterion.threshold, criterion.ci_low, criterion.ci_high) if v is not None]
    low, high = criterion.ci_low, criterion.ci_high
    kind = "good" if criterion.passed else "bad"
    yield text(_words(criterion.name))
    yield criterion.format(criterion.value)
    yield "-" if low is None or high is None else f"{criterion.format(low)} to {criterion.format(high)}"
    yield criterion.format(criterion.threshold)
    yield interval_mark(criterion.value, low, high, threshold=criterion.threshold, scale=(min(ends), max(ends)), kind=kind)
    yield f'<span class="badge {kind}">{"pass" if criterion.passed else "fail"}</span>'
    yield text(criterion.explanation)


def examples(data: ReportData) -> str:
    """Return the search form for answers; the script fills the list from the page's data."""
    n_all, n_shown = data.comparison.n_items, len(data.examples)
    personas = dict.fromkeys(example.persona_id for example in data.examples)
    options = "".join(f'<option value="{index}">{text(persona_id)}</option>' for index, persona_id in enumerate(personas))
    extent = (
        f"{n_shown} of the {n_all} test items are on this page, the first of every persona."
        if n_shown < n_all
        else f"All {n_all} test items."
    )
    return (
        f'<p class="lead">The same item answered by every method. {extent}</p>'
        '<form class="controls" role="search"><label>Search <input type="search" id="search" autocomplete="off" '
        'placeholder="persona, prompt or answer"></label>'
        f'<label>Persona <select id="persona"><option value="">everybody</option>{options}</select></label>'
        '<output id="found" aria-live="polite"></output></form>'
        '<div id="examples"></div><button type="button" id="more" hidden>Show more</button>'
    )


def trials(data: ReportData) -> str:
    """Return the table of the recipes that every method tried."""
    lead = "Every method tried the same recipes. Val losses of one round compare: they are of the same people."
    numeric = [False, *(True for _ in TRIAL_COLUMNS[1:7]), False, False, True, True, True, False]
    rows = [[text(cell) for cell in row] for row in data.trials]
    return f'<p class="lead">{lead}</p>' + html_table(TRIAL_COLUMNS, rows, numeric=numeric, caption="recipes that were tried")


def appendix(data: ReportData) -> str:
    """Return what the judge is worth, effect sizes, the other metrics and the mixed model; an empty string without them."""
    judge = f'<p class="sentence">{text(data.appendix.judge)}</p>' if data.appendix.judge else ""
    return judge + "".join(
        f'<h3>{text(title)}</h3><p class="note">{text(sentence)}</p>'
        + html_table(header, [[text(cell) for cell in row] for row in rows], numeric=numeric, caption=title)
        for title, sentence, (header, rows), numeric in appendix_words.tables(data.appendix, data.comparison)
    )


def about(data: ReportData) -> str:
    """Return the settings and the provenance of the study."""
    rows = [*data.settings, *data.provenance]
    return pairs(rows) if rows else ""
