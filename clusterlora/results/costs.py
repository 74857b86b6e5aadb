"""What methods and a study cost, as rows and as Markdown: quality against money."""

from collections.abc import Iterable, Sequence

from clusterlora.comparison.result import Comparison
from clusterlora.evaluation.markdown import markdown_table
from clusterlora.evaluation.metrics import METRICS
from clusterlora.planning.study_state import StudyState
from clusterlora.planning.work_plan import WorkPlan, trained_adapters
from clusterlora.ports.stores import Stores
from clusterlora.progress.cost import StudyCost
from clusterlora.report.data import SPENT_COLUMNS, Cost


def spent_rows(cost: StudyCost) -> tuple[tuple[str, ...], ...]:
    """Return a row of SPENT_COLUMNS for every phase on every device."""
    return tuple(
        (
            use.phase,
            use.device,
            f"{use.seconds / 3600:.4f}",
            f"{use.joules / 3.6e6:.4f}" if use.metered_seconds else "-",
            "-" if (money := cost.money(use)) is None else f"{money:.4f} {cost.currency}",
        )
        for use in cost.uses
    )


def costs_markdown(comparison: Comparison, costs: Sequence[Cost], cost: StudyCost) -> str:
    """Return every method's quality against the money of its trainings, and what the study spent in all, as Markdown."""
    if not cost.uses:
        return ""
    metric = METRICS[comparison.headline]
    rows = [
        (one.method, metric.format(comparison.method(one.method).means[comparison.headline]), f"{one.train_tokens:,}", priced(one, cost))
        for one in costs
    ]
    header = ("method", comparison.headline, "train tokens", "training cost")
    return (
        f"\nQuality against money. {' '.join(cost.sentences)} A method's trainings cost its tokens at this study's money per token; "
        "adapters that methods share count for each:\n\n"
        + markdown_table(header, rows, right=(False, True, True, True))
        + "\nWhat devices did, failed attempts included:\n\n"
        + markdown_table(SPENT_COLUMNS, spent_rows(cost), right=(False, False, True, True, True))
    )


def priced(one: Cost, cost: StudyCost) -> str:
    """Return the money of a method's trainings; a dash where it is unknown."""
    return "-" if one.money is None else f"{one.money:.4f} {cost.currency}"


def method_costs(state: StudyState, stores: Stores, plan: WorkPlan, comparison: Comparison, cost: StudyCost) -> tuple[Cost, ...]:
    """Return what every compared method needs with the study's own seed, best first.

    To answer, that is the adapters of its routes; to be trained, all it chose among and their needs. Money is that of the tokens of these
    trainings, at what a token that this study trained cost.
    """
    trained = trained_adapters(state, plan)
    routes = [route for route in stores.studies.routes(state.name) if route.seed == 0]
    found: list[Cost] = []
    for result in comparison.methods:
        answering = {name for route in routes if route.method == result.method for name in route.composition.adapter_names} & trained.keys()
        arms = plan.methods[result.method].arms_by_persona
        behind = (
            _with_needs(plan, {name for _, compositions in arms for composition in compositions for name in composition.adapter_names})
            & trained.keys()
        )
        tokens = sum(trained[name].train_tokens for name in behind)
        found.append(
            Cost(
                method=result.method,
                n_adapters=len(answering),
                n_bytes=sum(trained[name].n_bytes for name in answering),
                train_tokens=tokens,
                train_seconds=sum(trained[name].seconds for name in behind),
                money=0.0 if not tokens and cost.total is not None else _times(tokens, cost.money_per_train_token),
            )
        )
    return tuple(found)


def _times(tokens: int, money_per_token: float | None) -> float | None:
    return None if money_per_token is None else tokens * money_per_token


def _with_needs(plan: WorkPlan, names: Iterable[str]) -> set[str]:
    """Return these adapters, what they start from and what they are merged of, however far down."""
    with_needs: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name not in with_needs:
            with_needs.add(name)
            waiting += plan.specs[name].needs
    return with_needs
