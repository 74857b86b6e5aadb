"""What each method was tuned by, in sentences and as a table."""

from clusterlora.errors import counted
from clusterlora.evaluation.markdown import markdown_table
from clusterlora.methods import METHODS
from clusterlora.planning.ladder import GATED, OWN, REFERENCE, decided_rung, refused
from clusterlora.planning.study_state import StudyState
from clusterlora.planning.trials import recipe_tried, trial_keys, trials_were_pruned
from clusterlora.planning.tuning import chosen, left, planned_methods, tuned_methods
from clusterlora.planning.work_plan import trained_adapters, work_plan
from clusterlora.report.data import TRIAL_COLUMNS

_UNIFIED_OTHERWISE = ("unified_longer", "unified_wide", "unified_described")
"""Controls that are unified, changed in one thing."""


def words_of(state: StudyState, method: str, number: int) -> str:
    """Return what a method made of a recipe in words: learning rate, epochs, rank and alpha, and what else differs from its first one.

    A prefix has a length, and neither alpha nor dropout nor layers.
    """
    assert state.tuning is not None, f"study {state.name} tunes nothing"
    one, other = (recipe_tried(state, method, which) for which in (number, 0))
    init = f", from {state.tuning.recipes[number].init}" if method == GATED else ""
    parts = [f"lr {one.learning_rate:g}", counted(one.epochs, "epoch")]
    if one.kind == "prefix":
        parts.append(f"length {one.rank}")
    else:
        parts += [f"rank {one.rank}", f"alpha {one.alpha:g}"]
        parts += [f"dropout {one.dropout:g}"] if one.dropout != other.dropout else []
        parts += [f"on {', '.join(one.target_modules)}"] if one.target_modules != other.target_modules else []
    return ", ".join(parts) + init + (" (the study's own)" if number == 0 else "")


def tuning_sentence(state: StudyState) -> str | None:
    """Return what every method was tuned by; None where none was, neither alike nor by the gate's ladder."""
    tuning, rung = state.tuning, decided_rung(state)
    if tuning is None:
        if len(state.verdicts) < 2:
            return None
        return (
            f"Tuning was not equal: {GATED} alone tried {len(state.verdicts)} configurations on val, every other method one; "
            "`--tune N` tries as many for each."
        )
    done = chosen(tuning)
    clauses = [f"{method} {words_of(state, method, left(tuning, method)[0])}" for method in done]
    names = planned_methods(state)
    lost = [m for m in tuned_methods(names) if not left(tuning, m)]
    waiting = [m for m in tuned_methods(names) if m not in done and m not in lost]
    varied = [m for m in _UNIFIED_OTHERWISE if m in names]
    judged = {verdict.rung for verdict in state.verdicts}
    retried = [one.name for one in state.retry_rungs if one.name in judged]
    kept = rung.name if rung != OWN else "the recipe above"
    sentences = [
        f"{'These methods were' if lost or waiting else 'Each method was'} tuned by the same {len(tuning.recipes)} recipes on val loss: "
        f"{'; '.join(clauses) or 'none has its recipe yet'}."
        + (" Methods that use such adapters, and controls with adapters like them, are trained by the same." if clauses else ""),
        f"{' and '.join(varied)}: {REFERENCE}'s recipe at another length, width or prompt, for which it was not tuned." if varied else "",
        _people_sentence(state),
        f"Not tuned{', as the gate refused' if refused(state) else ''}: {', '.join(waiting)}." if waiting else "",
        f"All recipes diverged: {', '.join(lost)}." if lost else "",
        f"By a person's decision {GATED} alone then tried more on the items that judge it, {', '.join(retried)}; it and its controls are "
        f"trained by {kept}."
        if retried
        else "",
    ]
    return " ".join(filter(None, sentences))


def _people_sentence(state: StudyState) -> str:
    """Return on how many people recipes were tried; empty before any was."""
    tried = [one.n_personas for step in state.tuning.steps for one in step] if state.tuning else []
    if not tried:
        return ""
    fewest, most, total = min(tried), max(tried), len(state.dataset.ids)
    how_many = f"{fewest} to {most}" if fewest < most else f"{most}"
    words = f"A round was tried on {how_many} of {counted(total, 'person').replace('persons', 'people')}"
    if fewest == total:
        return f"{words}."
    methods = {one.method for step in state.tuning.steps for one in step} if state.tuning else set[str]()
    under = "; hybrid's residuals lie over the study's own unified" if "hybrid" in methods else ""
    return f"{words}; adapters of several people, and what these start from, were trained on these alone, fewer than the study's{under}."


def cost_sentence(state: StudyState) -> str:
    """Return what the trials take beside all adapters that are trained by what they chose; empty where not all are there to tell."""
    plan = work_plan(state)
    trained, tuned = trained_adapters(state, plan), set(tuned_methods(planned_methods(state)))
    methods = [one for seed in plan.seeds for name, one in seed.items() if tuned.intersection(METHODS[name].recipes)]
    # Two names may stand for one set of weights.
    kept = {plan.keys[spec.name]: spec.name for one in methods for spec in one.adapters}
    if state.tuning is None or not trained.keys() >= set(kept.values()) or trials_were_pruned(state):
        return ""
    of_trials = trial_keys(state)
    trials = sum(adapter.train_tokens for adapter in state.adapters if adapter.key in of_trials)
    once = sum(trained[name].train_tokens for name in kept.values())
    if not once:
        return ""
    return (
        f"Trials take the training of {trials:,} tokens, {trials / once:.1f} times the {once:,} of all adapters with a recipe that was "
        "tuned; a person's adapter that was a trial counts as both, and what another study had trained was not trained again."
    )


def trial_rows(state: StudyState, *, last_round: bool = False) -> list[tuple[str, ...]]:
    """Return a row of TRIAL_COLUMNS for every recipe of every method, those that got furthest first; or only for these."""
    tuning = state.tuning
    if tuning is None:
        return []
    done, rows = chosen(tuning), list[tuple[str, ...]]()
    for method in tuned_methods(planned_methods(state)):
        last: dict[int, tuple[int, int, float | None]] = {}
        for number, one in enumerate(tuning.rounds(method), start=1):
            last |= {recipe: (number, one.n_personas, loss) for recipe, loss in one.losses}
        ranked = sorted(last.items(), key=lambda item: (-item[1][0], item[1][2] is None, item[1][2] or 0.0, item[0]))
        for number, (rounds, people, loss) in ranked:
            if last_round and rounds < ranked[0][1][0]:
                continue
            recipe, is_chosen = recipe_tried(state, method, number), method in done and number == left(tuning, method)[0]
            has_own_layers = recipe.target_modules == state.settings.recipe.target_modules
            layers = "the study's" if has_own_layers else ", ".join(recipe.target_modules)
            # A prefix has none of these.
            acting = ("-", "-", "-") if recipe.kind == "prefix" else (f"{recipe.alpha:g}", f"{recipe.dropout:g}", layers)
            rows.append(
                (
                    method,
                    str(number),
                    f"{recipe.learning_rate:g}",
                    str(recipe.epochs),
                    str(recipe.rank),
                    *acting,
                    tuning.recipes[number].init if method == GATED else "-",
                    str(rounds),
                    str(people),
                    "diverged" if loss is None else f"{loss:.4f}",
                    "chosen" if is_chosen else "",
                )
            )
    return rows


def tuning_markdown(state: StudyState) -> str:
    """Return the recipes of every method's last round as a Markdown table under a sentence; nothing where nothing is tuned."""
    rows = trial_rows(state, last_round=True)
    if not rows:
        return ""
    note = "The recipes of every method's last round, on the same people; the report has all that were tried:"
    table = markdown_table(TRIAL_COLUMNS, rows, right=(False, *(True for _ in TRIAL_COLUMNS[1:-1]), False))
    return "\n" + " ".join(filter(None, (cost_sentence(state), note))) + f"\n\n{table}"
