"""What a refresh found, for summary.md and the report: the decision, forgetting, drift, and the champions before it."""

from collections.abc import Iterator, Sequence, Set
from statistics import fmean

from clusterlora.errors import counted, printable
from clusterlora.evaluation.markdown import markdown_table
from clusterlora.evaluation.metrics import METRICS
from clusterlora.metadata import Regrouping, Shift
from clusterlora.persona_signal.measure import PersonaSignal
from clusterlora.persona_signal.summary import verdict
from clusterlora.planning.family import champions, decided_before, lineage
from clusterlora.planning.study_state import StudyState
from clusterlora.planning.work_plan import WorkPlan
from clusterlora.ports.stores import Stores
from clusterlora.values import EvaluationRow

LAST_CHAMPION = "last_champion"
"""The method that answers as the champion which a refresh challenges; its reference."""
_MOST_NAMED = 5
HEADER = ("what", "found")


def split_by_news(
    state: StudyState, rows: Sequence[EvaluationRow], decided: Set[tuple[str, str]]
) -> tuple[list[EvaluationRow], list[EvaluationRow]]:
    """Return the rows of items that neither champion nor challenger has seen in any split, and of those that were test items before.

    The items of new dialogues that have `decided` an earlier refresh are in neither part: they would be tried until one passes.
    """
    assert state.news is not None, f"study {state.name} is no refresh"
    new = {(p, one) for p, ids in state.news.dialogues for one in ids}
    of_new, of_decided = (
        {
            (person.id, f"{dialogue.id}#{position}")
            for person in state.dataset.personas
            for dialogue in person.of_split("test")
            if (person.id, dialogue.id) in dialogues
            for position in range(len(dialogue.turns) + 1)
        }
        for dialogues in (new - decided, new & decided)
    )
    parts: tuple[list[EvaluationRow], list[EvaluationRow]] = ([], [])
    for row in rows:
        if (item := (row.persona_id, row.item_id)) not in of_decided:
            parts[item not in of_new].append(row)
    return parts


def refresh_rows(
    state: StudyState, plan: WorkPlan, new: Sequence[EvaluationRow], old: Sequence[EvaluationRow], stores: Stores
) -> tuple[tuple[str, str], ...]:
    """Return what a compared refresh found, as pairs (what, found)."""
    return tuple(_pairs(state, plan, new, old, stores))


def _pairs(
    state: StudyState, plan: WorkPlan, new: Sequence[EvaluationRow], old: Sequence[EvaluationRow], stores: Stores
) -> Iterator[tuple[str, str]]:
    start, news, outcome = state.start, state.news, state.moved
    assert outcome is not None, f"study {state.name} is not compared"
    assert start is not None, f"study {state.name} is no refresh"
    assert news is not None, f"refresh {state.name} has no news"
    yield "challenges", f"{start.method} of study {start.study}"
    n_new = sum(len(ids) for _, ids in news.dialogues)
    yield "news", f"{counted(n_new, 'dialogue')} of {counted(len(news.dialogues), 'persona')} that it has not seen"
    if news.newcomers:
        yield "new people", str(len(news.newcomers))
    if news.n_repeated:
        yield "repeated", f"{news.n_repeated} of {news.n_read} dialogues read stood there already, or twice"
    if news.n_left_out:
        why = "whose words two splits would have held, or of new people with none to learn"
        yield "left out", f"{counted(news.n_left_out, 'dialogue')} {why}"
    tested = {(p.id, d.id) for p in state.dataset.personas for d in p.of_split("test")}
    if n_decided := len(tested & {(p, one) for p, ids in news.dialogues for one in ids} & decided_before(state.settings, stores)):
        yield "decided before", f"{counted(n_decided, 'new test dialogue')} on which an earlier refresh had its verdict do not count again"
    yield "champion", f"{'moves to ' + outcome.challenger if outcome.moved else 'stays'}: {outcome.reason}"
    metric = METRICS[state.settings.evaluation.headline].name
    for what, shift in (("on new items", outcome.on_new), ("on old items (forgetting)", outcome.on_old)):
        if shift is not None:
            yield what, _shift(metric, outcome.challenger, shift)
    yield "trained", _trained(state, plan)
    if state.regrouping is not None:
        yield "drift of people", drift_sentence(state.regrouping) + _who(state.regrouping)
    losses = [_loss(rows) for rows in (new, old)]
    if losses[0] is not None:
        before = "" if losses[1] is None else f", {losses[1]:.3f} on the old ones"
        yield "loss of the champion challenged", f"{losses[0]:.3f} nats per token on the new items{before}"
    yield "goes on from", " < ".join(lineage(state.name, stores))
    root = str(state.settings.refresh.root)
    # This one's own outcome stands above, and is recorded after this.
    for sentence in (one for one in champions(root, stores) if not one.startswith(f"{state.name}:")):
        yield "champions before", sentence
    for what, name in (("signal in the data before", start.study), ("signal in the data now", state.name)):
        if (signal := stores.studies.metadata(name, PersonaSignal)) is not None:
            yield what, verdict(signal)


def refresh_markdown(pairs: Sequence[tuple[str, str]]) -> str:
    """Return the section of summary.md."""
    return "\n## What the refresh found\n\n" + markdown_table(HEADER, pairs, right=(False, False))


def _shift(metric_name: str, challenger: str, shift: Shift) -> str:
    metric = METRICS[metric_name]
    low, high = metric.format(shift.ci_low, signed=True), metric.format(shift.ci_high, signed=True)
    return (
        f"{challenger} {metric.format(shift.challenger)}, the champion {metric.format(shift.champion)}: "
        f"{metric.difference(shift.difference)} [{low}, {high}] on {counted(shift.n_items, 'item')} of "
        f"{counted(shift.n_personas, 'persona')}"
    )


def _trained(state: StudyState, plan: WorkPlan) -> str:
    going_on = {plan.keys[name] for name, spec in plan.specs.items() if spec.learns_from}
    kept = {plan.keys[name] for name, spec in plan.specs.items() if spec.kept}
    others = len(set(plan.keys.values()) - going_on - kept)
    return (
        f"{counted(len(going_on), 'adapter')} went on with news, {state.settings.refresh.replay:.0%} of what they learnt replayed; "
        f"{len(kept)} are those of before, {others} learnt from the start"
    )


def drift_sentence(found: Regrouping) -> str:
    """Return how many people a refresh found nearer to another cluster, and what became of the clusters.

    Nobody is named: notifications carry it elsewhere.
    """
    anew = "everybody was clustered anew" if found.anew else "the clusters are kept"
    return f"{len(found.moved)} of {counted(found.n_personas, 'persona')} nearest to another cluster than their own; {anew}"


def _who(found: Regrouping) -> str:
    named = "; ".join(f"{printable(p)} in {own}, nearest {nearest}" for p, own, nearest in found.moved[:_MOST_NAMED])
    return f" ({named}{'; ...' if len(found.moved) > _MOST_NAMED else ''})" if named else ""


def _loss(rows: Sequence[EvaluationRow]) -> float | None:
    """Return the mean over people of the champion's loss; None where it is not measured."""
    by_person: dict[str, list[float]] = {}
    for row in rows:
        if row.method == LAST_CHAMPION and "nll" in row.scores:
            by_person.setdefault(row.persona_id, []).append(row.scores["nll"])
    return fmean(map(fmean, by_person.values())) if by_person else None
