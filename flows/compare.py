"""Compare the methods of a study on the answers it holds."""

from prefect import flow, tags

from tasks.comparison import publish_comparison
from tasks.run_names import study_tag


@flow(name="compare", flow_run_name="compare · {study_name}")
def compare(study_name: str) -> str:
    """Write the tables and the figure, and return the sentence that sums them up.

    Args:
        study_name: A study whose test items have been answered.
    """
    with tags(study_tag(study_name)):
        return publish_comparison(study_name)
