"""The panel of costs: what methods and the study cost, where the time went, and the attempts that failed."""

from clusterlora.evaluation.metrics import METRICS
from clusterlora.report.data import SPENT_COLUMNS, ReportData
from clusterlora.report.markup import html_table, text


def costs(data: ReportData) -> str:
    """Return the cost of every method beside its quality, what devices did, the seconds by stage, and the attempts that failed."""
    comparison = data.comparison
    metric = METRICS[comparison.headline]
    rows = [
        [
            text(c.method),
            metric.format(comparison.method(c.method).means[comparison.headline]),
            f"{c.n_adapters}",
            _bytes(c.n_bytes),
            f"{c.train_tokens:,}",
            f"{c.train_seconds:,.0f}",
            "-" if c.money is None else f"{c.money:,.4f}",
        ]
        for c in data.costs
    ]
    header = ["method", metric.label, "adapters that answer", "their size", "train tokens", "adapter-seconds", f"cost ({data.currency})"]
    parts = [html_table(header, rows, numeric=[False, *(True for _ in header[1:])], caption="costs")]
    parts.append(
        '<p class="note">Size is what must be kept to answer everybody. Tokens and seconds are those of every adapter that the method '
        "chose among, started from or was merged of; an adapter that methods share counts for each. Adapters trained side by side count "
        "their seconds in full, each of them; the seconds of the runs are below. Cost is that of the tokens, at what a "
        "token that this study trained cost. Of several training seeds, the first is counted.</p>"
    )
    if data.spent:
        parts.append(f'<p class="note">{text(" ".join(data.spent_says))}</p>')
        spent = [[text(cell) for cell in row] for row in data.spent]
        table = html_table(list(SPENT_COLUMNS), spent, numeric=[False, False, True, True, True], caption="what devices did")
        parts.append(f"<details><summary>What devices did, failed attempts included</summary>{table}</details>")
    if data.seconds_by_part:
        phases = [[text(name), f"{seconds:,.1f}"] for name, seconds in data.seconds_by_part]
        timings = html_table(["stage", "seconds"], phases, numeric=[False, True], caption="seconds by stage")
        parts.append(f"<details><summary>Where the time went</summary>{timings}</details>")
    failed = [a for a in data.attempts if a.state not in ("running", "done")]
    if failed:
        cells = [[text(a.group), text(a.number), text(a.micro_batch), text(a.state.replace("_", " ")), text(a.detail)] for a in failed]
        header = ["run", "attempt", "micro-batch", "ended", "why"]
        parts.append("<h3>Attempts that did not end well</h3>")
        parts.append(html_table(header, cells, numeric=[False, True, True, False, False], caption="attempts that did not end well"))
    return "".join(parts)


def _bytes(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:,.2f} MB" if n_bytes else "none"
