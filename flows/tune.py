"""Equal tuning: every method tries the same recipes, in rounds of fewer and fewer on more people; the lowest val loss decides."""

from prefect import flow, tags

from tasks.fan_out import evaluate_all, train_all
from tasks.run_names import study_tag
from tasks.tuning import choose, plan_tuning


@flow(name="tune", flow_run_name="tune · {study_name}")
def tune(study_name: str) -> None:
    """Choose the recipe of every method whose turn it is: before the gate of those that it judges, after it of all others.

    Args:
        study_name: A study that exists, with its personas grouped.
    """
    with tags(study_tag(study_name)):
        while step := plan_tuning(study_name):
            number, waves = step
            for groups in waves:
                train_all(study_name, groups)
            evaluate_all(study_name, parts=("tuning",), step=number)
            choose(study_name, number)
