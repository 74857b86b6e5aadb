"""The report as one HTML file that needs no network: styles, script, plotly.js and data are inside it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from importlib.resources import files
from typing import Any, NamedTuple

from clusterlora.evaluation.metrics import METRICS
from clusterlora.report import figures, sections
from clusterlora.report.costs import costs
from clusterlora.report.data import ReportData
from clusterlora.report.figures import Figure
from clusterlora.report.markup import data_block, script_hash, text


class _Panel(NamedTuple):
    anchor: str
    title: str
    body: str
    figure: Figure | None = None
    figure_alt: str = ""


def page(data: ReportData) -> str:
    """Return the whole page: about 5 MB, of which 4.8 MB are plotly.js."""
    panels = list(_panels(data))
    figure_by_anchor = {panel.anchor: panel.figure for panel in panels if panel.figure is not None}
    metric = METRICS[data.comparison.headline]
    examples = {
        "items": [asdict(example) for example in data.examples],
        "percent": metric.percent,
        "higherIsBetter": metric.higher_is_better,
        "champion": data.comparison.champion,
    }
    scripts = (_plotly(), _resource("page.js"))
    # Only these two scripts may run and nothing may be fetched, whatever text a persona or a model wrote.
    policy = (
        f"default-src 'none'; script-src {' '.join(map(script_hash, scripts))}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    links = "".join(f'<li><a href="#{panel.anchor}">{text(panel.title)}</a></li>' for panel in panels)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">'
        f"<title>{text(data.study)} · clusterlora</title><style>{_resource('page.css')}</style></head><body>"
        '<a class="skip" href="#verdict">Skip to the verdict</a>'
        f'<header><div><p class="kind">clusterlora study</p><h1>{text(data.study)}</h1></div>'
        '<button type="button" id="theme">Dark</button></header>'
        f'<nav aria-label="Panels"><ul>{links}</ul></nav><main>{"".join(_section(panel) for panel in panels)}</main>'
        "<noscript><p class='warning'>Figures, sorting and the search need JavaScript; the numbers are in the tables.</p></noscript>"
        f"{data_block('figures', _rounded(figure_by_anchor))}{data_block('answers', examples)}"
        f"{''.join(f'<script>{script}</script>' for script in scripts)}</body></html>\n"
    )


def _panels(data: ReportData) -> Iterator[_Panel]:
    comparison, clustering = data.comparison, data.clustering
    clusters = clustering.cluster_by_persona() if clustering else {}
    yield _Panel("verdict", "Verdict", sections.verdict(data) + sections.warnings(data.warnings))
    if data.refresh:
        yield _Panel("refresh", "What is new", sections.refresh(data))
    if data.signal is not None:
        yield _Panel("signal", "Signal in the data", sections.signal(data.signal))
    yield _Panel("methods", "Methods", sections.methods(comparison))
    yield _Panel(
        "means", "Means", "", figures.means(comparison), "Every method's mean over personas with its 95% interval, floor and oracle"
    )
    yield _Panel("spread", "Spread over personas", "", figures.spread(comparison, clusters), "Every persona's mean under every method")
    versus = figures.against_reference(comparison, clusters)
    if versus is not None:
        note = f"Every persona: a method against {comparison.reference}. Above the line the method is {_direction(data)}"
        yield _Panel("against", f"Against {comparison.reference}", f'<p class="note">{text(note)}.</p>', versus, note)
    if clustering is not None:
        drawing = figures.cluster_map(clustering)
        yield _Panel(
            "clusters", "Clusters", sections.clusters(clustering), drawing, "Personas in the plane of largest variance, by cluster"
        )
    if data.verdicts:
        yield _Panel("gate", "Gate", sections.gate(data.verdicts))
    if data.trials:
        yield _Panel("recipes", "Recipes", sections.trials(data))
    drawing = figures.new_personas(data.newcomers) if data.newcomers else None
    yield _Panel(
        "new-persona",
        "A new persona",
        sections.new_personas(data),
        drawing,
        "Gain over unified of people whom no adapter saw, by how many of their dialogues chose who answers them",
    )
    if data.memory is not None:
        yield _Panel("privacy", "Privacy", sections.privacy(data.memory))
    if data.curves:
        missing = "Dotted: trained by a version that recorded no learning curves, only the first and the last loss."
        note = f'<p class="note">{missing}</p>' if any(not curve.complete for curve in data.curves) else ""
        yield _Panel("curves", "Learning curves", note, figures.curves(data.curves), "Training losses over the share of the steps")
    if data.costs:
        drawing = figures.costs(comparison, data.costs, data.currency)
        yield _Panel("costs", "Cost", costs(data), drawing, "Quality against cost, method by method")
    if data.examples:
        yield _Panel("answers-panel", "Answers", sections.examples(data))
    if below := sections.appendix(data):
        yield _Panel("appendix", "Appendix", below)
    if data.imported:
        yield _Panel("imported", "Imported scores", sections.imported(data))
    if about := sections.about(data):
        yield _Panel("about", "About this study", about)


def _rounded(value: Any) -> Any:
    """Return nested values with numbers to six digits: more is not seen in a figure, and they are most of a page's data."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {name: _rounded(inner) for name, inner in value.items()}  # pyrefly: ignore[partially-unknown-type, unknown-argument-type, unknown-variable-type]
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_rounded(inner) for inner in value]  # pyrefly: ignore[unknown-argument-type, unknown-variable-type]
    return value


def _direction(data: ReportData) -> str:
    return "better" if METRICS[data.comparison.headline].higher_is_better else "worse"


def _section(panel: _Panel) -> str:
    figure = ""
    if panel.figure is not None:
        views = panel.figure["views"]
        options = "".join(f'<option value="{index}">{text(view["name"])}</option>' for index, view in enumerate(views))
        choice = f'<p class="controls"><label>Show <select data-figure="{panel.anchor}">{options}</select></label></p>' if views else ""
        kind = "figure square" if panel.figure["square"] else "figure"
        figure = (
            f'{choice}<div class="{kind}" id="figure-{panel.anchor}" role="figure" aria-label="{text(panel.figure_alt)}" '
            f'style="height:{panel.figure["height"]}px"></div>'
        )
    return f'<section id="{panel.anchor}"><h2>{text(panel.title)}</h2>{figure}{panel.body}</section>'


@lru_cache(maxsize=1)
def _plotly() -> str:
    from plotly.offline import get_plotlyjs  # pyrefly: ignore[implicit-reexport]

    return get_plotlyjs()


def _resource(name: str) -> str:
    return (files("clusterlora.report") / name).read_text(encoding="utf-8")
