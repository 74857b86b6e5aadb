"""Equal tuning of all methods: the next recipes to try, and the ones that go on."""

from prefect.artifacts import create_markdown_artifact

from clusterlora.planning.training_groups import Waves
from tasks.run_log import artifact_key
from tasks.study_task import TaskContext, study_task


@study_task("plan tuning · {study_name}")
def plan_tuning(context: TaskContext, study_name: str) -> tuple[int, Waves] | None:
    """Return the next step's number, and the groups of adapters that it needs; None when every method in turn has its recipe."""
    from clusterlora.planning.study_state import read_state
    from clusterlora.planning.training_groups import trial_groups
    from clusterlora.planning.trials import trial_step

    state = read_state(study_name, context.stores)
    step = trial_step(state)
    return (step.number, trial_groups(state, step)) if step else None


@study_task("choose recipes · {study_name} · step {step}", progress="{study_name} tuning {step}")
def choose(context: TaskContext, study_name: str, step: int) -> None:
    """Record a step's val losses, in the tracker as well, and publish all trials as a table."""
    from clusterlora.planning.study_state import read_state
    from clusterlora.results.tuning import tuning_markdown, tuning_sentence
    from clusterlora.stages.tuning import choose_recipes

    choose_recipes(study_name, step, context.stores, context.log)
    state = read_state(study_name, context.stores)
    sentence = tuning_sentence(state) or ""
    create_markdown_artifact(
        f"{sentence}\n{tuning_markdown(state)}", key=artifact_key("tuning", study_name), description=f"{study_name}: {sentence}"
    )
