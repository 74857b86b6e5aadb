"""The report's figures as plotly figures in plain JSON values. Colours that begin with @ are names that page.js resolves by theme."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from clusterlora.comparison.new_personas import NewPersonas
from clusterlora.comparison.result import Comparison, MethodResult
from clusterlora.comparison.table import marks
from clusterlora.evaluation.metrics import METRICS
from clusterlora.report.data import Cost, Curve
from clusterlora.report.markup import label
from clusterlora.report.palette import mark
from clusterlora.values import Clustering

Figure = dict[str, Any]
"""Plotly's `data` and `layout`, `height` in pixels, `square` when the figure does not fill the width, and `views`: named selections of
visible traces with their changes to the layout."""

_SMOOTH_OVER = 5
"""Width of the moving average behind the bold line of a curve, in points."""


def means(comparison: Comparison) -> Figure:
    """Return bars of every method's mean with its interval. Bars start at `bar_start`; methods worse than the floor are hatched."""
    scale = _scale(comparison)
    start = scale * comparison.bar_start
    best_last = comparison.methods[::-1]
    values = [scale * result.means[comparison.headline] for result in best_last]
    bars = {
        "type": "bar",
        "orientation": "h",
        "y": [_name(comparison, result) for result in best_last],
        "x": [value - start for value in values],
        "base": start,
        "marker": {
            "color": [_colour(comparison, result) for result in best_last],
            "pattern": {"shape": ["/" if comparison.is_worse_than_floor(result) else "" for result in best_last]},
        },
        "customdata": [_hover(comparison, result) for result in best_last],
        "hovertemplate": "%{customdata}<extra></extra>",
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": [scale * result.mean_high - value for result, value in zip(best_last, values, strict=True)],
            "arrayminus": [value - scale * result.mean_low for result, value in zip(best_last, values, strict=True)],
            "color": "@ink",
            "thickness": 1.6,
            "width": 5,
        },
    }
    metric = METRICS[comparison.headline]
    baselines = [(name, value) for name, value in (("oracle", comparison.oracle), ("floor", comparison.floor)) if value is not None]
    layout = {
        "xaxis": {"title": {"text": _axis(comparison)}, "zeroline": False},
        "yaxis": {"automargin": True, "showgrid": False},
        "shapes": [_vertical(scale * value) for _, value in baselines],
        "annotations": [_above(scale * value, f"{name} {metric.format(value)}") for name, value in baselines],
        "margin": {"t": 34},
        "showlegend": False,
    }
    return _figure([bars], layout, height=130 + 40 * len(best_last))


def spread(comparison: Comparison, clusters: Mapping[str, int]) -> Figure:
    """Return every persona's mean under every method, with median and quartiles."""
    scale = _scale(comparison)
    data = [
        {
            "type": "box",
            "orientation": "h",
            "name": _name(comparison, result),
            "x": [scale * value for value in result.by_persona.values()],
            "boxpoints": "all",
            "jitter": 0.7,
            "pointpos": 0,
            "hoveron": "points",
            "marker": {"size": 5, "opacity": 0.65, "color": _colour(comparison, result)},
            "line": {"color": "@ink", "width": 1.1},
            "fillcolor": "rgba(128,128,128,0.08)",
            "customdata": [_persona_hover(persona_id, clusters) for persona_id in result.by_persona],
            "hovertemplate": "%{customdata}<br>%{x:.2f}<extra></extra>",
        }
        for result in comparison.methods[::-1]
    ]
    layout = {"xaxis": {"title": {"text": _axis(comparison)}, "zeroline": False}, "yaxis": {"automargin": True}, "showlegend": False}
    return _figure(data, layout, height=110 + 58 * len(data))


def against_reference(comparison: Comparison, clusters: Mapping[str, int]) -> Figure | None:
    """Return a scatter of every persona's mean under a method and under the reference, a view per method; None without a reference."""
    if comparison.reference is None or len(comparison.methods) < 2:
        return None
    scale = _scale(comparison)
    base = comparison.method(comparison.reference).by_persona
    others = [result for result in comparison.methods if result.method != comparison.reference]
    others.sort(key=lambda result: result.method != comparison.champion)
    data: list[dict[str, Any]] = []
    method_of_trace: list[str] = []
    for result in others:
        for cluster in sorted({clusters.get(persona_id, 0) for persona_id in base}):
            members = [persona_id for persona_id in base if clusters.get(persona_id, 0) == cluster]
            colour, symbol, _ = mark(cluster)
            method_of_trace.append(result.method)
            data.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "name": f"cluster {cluster}",
                    "x": [scale * base[p] for p in members],
                    "y": [scale * result.by_persona[p] for p in members],
                    "marker": {"color": colour, "symbol": symbol, "size": 9, "opacity": 0.85},
                    "customdata": [_persona_hover(p, clusters) for p in members],
                    "hovertemplate": "%{customdata}<br>%{y:.2f} against %{x:.2f}<extra></extra>",
                }
            )
    all_means = [scale * value for result in comparison.methods for value in result.by_persona.values()]
    pad = 0.04 * ((max(all_means) - min(all_means)) or 1.0)
    ends = [min(all_means) - pad, max(all_means) + pad]
    layout = {
        "xaxis": {"range": ends, "title": {"text": f"{label(comparison.reference)}: {_axis(comparison)}"}, "zeroline": False},
        "yaxis": {"range": ends, "zeroline": False},
        "shapes": [
            {
                "type": "line",
                "x0": ends[0],
                "x1": ends[1],
                "y0": ends[0],
                "y1": ends[1],
                "line": {"color": "@muted", "dash": "dash", "width": 1.2},
            }
        ],
        "showlegend": True,
    }
    views = [
        {
            "name": result.method,
            "visible": [method == result.method for method in method_of_trace],
            "layout": {"yaxis": {"title": {"text": f"{label(result.method)}: {_axis(comparison)}"}}},
        }
        for result in others
    ]
    return _figure(data, layout, height=640, views=views, square=True)


def new_personas(results: NewPersonas) -> Figure:
    """Return the gain of new personas over unified by number of their dialogues; horizontal lines need none."""
    metric = METRICS[results.metric]
    scale = 100.0 if metric.percent else 1.0
    lines = (("margin of 1 standard error", results.chosen, "@champion"), ("no margin", results.nearest, "@other"))
    data: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": name,
            # Offset sideways, so that neither interval hides the other.
            "x": [(o.n_dialogues or 0) + 0.12 * number for o in outcomes],
            "y": [scale * o.headline.mean for o in outcomes],
            "line": {"color": colour, "width": 2.4},
            "marker": {"size": 9},
            "error_y": {
                "type": "data",
                "symmetric": False,
                "array": [scale * (o.headline.high - o.headline.mean) for o in outcomes],
                "arrayminus": [scale * (o.headline.mean - o.headline.low) for o in outcomes],
                "color": colour,
                "thickness": 1.4,
                "width": 4,
            },
            "customdata": [f"{o.n_dialogues} dialogues<br>{o.leave:.0%} leave unified" for o in outcomes],
            "hovertemplate": "%{customdata}<br>%{y:+.2f}<extra></extra>",
        }
        for number, (name, outcomes, colour) in enumerate(lines)
    ]
    sizes = [o.n_dialogues or 0 for o in results.chosen]
    levels = (("unified", 0.0, "@reference"), ("their cluster in the study", scale * results.own.headline.mean, "@ink"))
    for name, height, colour in levels:
        ends = {"x": [0, max(sizes) + 1], "y": [height, height]}
        line = {"color": colour, "dash": "dash", "width": 1.4}
        data.append({"type": "scatter", "mode": "lines", "name": name, **ends, "line": line, "hovertemplate": "%{y:+.2f}<extra></extra>"})
    layout = {
        "xaxis": {"title": {"text": "dialogues of the new persona"}, "tickvals": sizes, "range": [0, max(sizes) + 1], "zeroline": False},
        "yaxis": {"title": {"text": f"gain over unified, {metric.label}{' (points)' if metric.percent else ''}"}, "zeroline": False},
        "showlegend": True,
    }
    return _figure(data, layout, height=420)


def cluster_map(clustering: Clustering) -> Figure | None:
    """Return the personas in the plane of largest variance, coloured by cluster; None when the clustering has no map."""
    if not clustering.map_2d:
        return None
    position = {persona_id: (x, y) for persona_id, x, y in clustering.map_2d}
    data: list[dict[str, Any]] = []
    for cluster, members in enumerate(clustering.members):
        mapped = [persona_id for persona_id in members if persona_id in position]
        colour, symbol, _ = mark(cluster)
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": f"cluster {cluster} ({len(members)})",
                "x": [position[p][0] for p in mapped],
                "y": [position[p][1] for p in mapped],
                "marker": {"color": colour, "symbol": symbol, "size": 11, "opacity": 0.9, "line": {"color": "@surface", "width": 1}},
                "customdata": [f"{label(p)}<br>cluster {cluster}" for p in mapped],
                "hovertemplate": "%{customdata}<extra></extra>",
            }
        )
    bare = {"showticklabels": False, "zeroline": False}
    layout = {
        "xaxis": {**bare, "title": {"text": "first principal component"}},
        "yaxis": {**bare, "title": {"text": "second principal component"}, "scaleanchor": "x"},
        "showlegend": True,
    }
    return _figure(data, layout, height=500)


def curves(all_curves: Sequence[Curve]) -> Figure:
    """Return training losses over the share of steps taken, since adapters differ in length. Pale: as recorded; bold: smoothed."""
    data: list[dict[str, Any]] = []
    for number, curve in enumerate(all_curves):
        colour = mark(number).colour
        x = [100 * step / max(curve.n_steps, 1) for step, _ in curve.points]
        losses = [loss for _, loss in curve.points]
        hover = [f"{label(curve.title)}<br>step {step} of {curve.n_steps}: loss {loss:.3f}" for step, loss in curve.points]
        common = {
            "type": "scatter",
            "x": x,
            "legendgroup": str(number),
            "customdata": hover,
            "hovertemplate": "%{customdata}<extra></extra>",
        }
        if curve.complete:
            data.append(
                {**common, "y": losses, "mode": "lines", "opacity": 0.3, "line": {"color": colour, "width": 1}, "showlegend": False}
            )
        bold = _smoothed(losses) if curve.complete else losses
        dash = "solid" if curve.complete else "dot"
        mode = "lines" if curve.complete else "lines+markers"
        data.append({**common, "y": bold, "mode": mode, "name": label(curve.title), "line": {"color": colour, "width": 2.4, "dash": dash}})
    layout = {
        "xaxis": {"title": {"text": "share of the training steps (%)"}, "range": [0, 101], "zeroline": False},
        "yaxis": {"title": {"text": "training loss (nats per token)"}, "zeroline": False},
        "showlegend": True,
    }
    return _figure(data, layout, height=420)


def costs(comparison: Comparison, all_costs: Sequence[Cost], currency: str) -> Figure:
    """Return quality over cost, a view per kind of cost. The cost axis is logarithmic; zero cost is drawn left of the first decade."""
    scale = _scale(comparison)
    money = [cost.money for cost in all_costs if cost.money is not None]
    kinds: tuple[tuple[str, Sequence[float]], ...] = (
        # Money first: where there are prices, it is what the other three stand for.
        *([(f"{currency} of training", money)] if len(money) == len(all_costs) else []),
        ("adapter bytes", [cost.n_bytes for cost in all_costs]),
        ("train tokens", [cost.train_tokens for cost in all_costs]),
        ("adapter-seconds of training", [cost.train_seconds for cost in all_costs]),
    )
    results = [comparison.method(cost.method) for cost in all_costs]
    values = [scale * result.means[comparison.headline] for result in results]
    rank = {result.method: index for index, result in enumerate(comparison.methods)}
    data: list[dict[str, Any]] = []
    views: list[dict[str, Any]] = []
    for number, (kind, amounts) in enumerate(kinds):
        positions, ticks = _log_axis(amounts)
        data.append(
            {
                "type": "scatter",
                "mode": "markers+text",
                "x": positions,
                "y": values,
                "text": [f" {_name(comparison, result)} " for result in results],
                "textposition": ["middle right" if rank[result.method] % 2 == 0 else "middle left" for result in results],
                "cliponaxis": False,
                "marker": {"size": 12, "color": [_colour(comparison, result) for result in results]},
                "error_y": {
                    "type": "data",
                    "symmetric": False,
                    "array": [scale * result.mean_high - value for result, value in zip(results, values, strict=True)],
                    "arrayminus": [value - scale * result.mean_low for result, value in zip(results, values, strict=True)],
                    "color": "@muted",
                    "thickness": 1,
                    "width": 3,
                },
                "customdata": [
                    f"{label(result.method)}<br>{f'{amount:,.0f}' if amount >= 100 else f'{amount:.4g}'} {kind}<br>{value:.2f}"
                    for result, amount, value in zip(results, amounts, values, strict=True)
                ],
                "hovertemplate": "%{customdata}<extra></extra>",
            }
        )
        ends = [min(positions) - 0.6, max(positions) + 0.6]
        axis = {
            "title": {"text": kind},
            "range": ends,
            "tickvals": [position for position, _ in ticks],
            "ticktext": [text for _, text in ticks],
        }
        views.append({"name": kind, "visible": [other == number for other in range(len(kinds))], "layout": {"xaxis": axis}})
    layout = {"xaxis": {"zeroline": False}, "yaxis": {"title": {"text": _axis(comparison)}, "zeroline": False}, "showlegend": False}
    return _figure(data, layout, height=440, views=views)


def _figure(
    data: list[dict[str, Any]], layout: dict[str, Any], *, height: int, views: Sequence[dict[str, Any]] = (), square: bool = False
) -> Figure:
    return {"data": data, "layout": layout, "height": height, "views": list(views), "square": square}


def _log_axis(amounts: Sequence[float]) -> tuple[list[float], list[tuple[float, str]]]:
    """Return the positions of amounts and the ticks (position, text): decades, and 0 one decade below the smallest."""
    logs = [math.log10(amount) for amount in amounts if amount > 0]
    first, last = (math.floor(min(logs)), math.ceil(max(logs))) if logs else (0, 0)
    ticks = [(float(decade), _short(10.0**decade)) for decade in range(first, last + 1)]
    if len(logs) < len(amounts):
        ticks.insert(0, (first - 1.0, "none"))
    return [math.log10(amount) if amount > 0 else first - 1.0 for amount in amounts], ticks


def _short(amount: float) -> str:
    for size, suffix in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if amount >= size:
            return f"{amount / size:g}{suffix}"
    return f"{amount:g}"


def _smoothed(losses: Sequence[float]) -> list[float]:
    half = _SMOOTH_OVER // 2
    windows = [losses[max(0, index - half) : index + half + 1] for index in range(len(losses))]
    return [sum(window) / len(window) for window in windows]


def _scale(comparison: Comparison) -> float:
    return 100.0 if METRICS[comparison.headline].percent else 1.0


def _axis(comparison: Comparison) -> str:
    metric = METRICS[comparison.headline]
    return f"{metric.label}{' (%)' if metric.percent else ''}{'' if metric.higher_is_better else ', lower is better'}"


def _name(comparison: Comparison, result: MethodResult) -> str:
    return label(result.method) + marks(comparison, result.method)


def _colour(comparison: Comparison, result: MethodResult) -> str:
    if result.method == comparison.reference:
        return "@reference"
    return "@champion" if result.method == comparison.champion else "@other"


def _hover(comparison: Comparison, result: MethodResult) -> str:
    metric = METRICS[comparison.headline]
    mean, low, high = (metric.format(value) for value in (result.means[comparison.headline], result.mean_low, result.mean_high))
    worse = "<br>worse than the floor" if comparison.is_worse_than_floor(result) else ""
    return f"{label(result.method)}<br>{mean} [{low}, {high}]{worse}"


def _persona_hover(persona_id: str, clusters: Mapping[str, int]) -> str:
    return f"{label(persona_id)}<br>cluster {clusters[persona_id]}" if persona_id in clusters else label(persona_id)


def _vertical(x: float) -> dict[str, Any]:
    line = {"color": "@muted", "dash": "dash", "width": 1.3}
    return {"type": "line", "x0": x, "x1": x, "y0": 0, "y1": 1, "yref": "paper", "line": line}


def _above(x: float, text: str) -> dict[str, Any]:
    """Return an annotation above the plot area."""
    return {"x": x, "y": 1, "yref": "paper", "yanchor": "bottom", "text": text, "showarrow": False, "font": {"color": "@muted"}}
