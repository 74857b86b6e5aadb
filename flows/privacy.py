"""Measure what the shared adapters and the champion of a study have memorised, before anybody asks."""

from prefect import flow, tags

from clusterlora.requests import PrivacyRequest
from tasks.privacy import publish_privacy
from tasks.run_names import study_tag


@flow(name="privacy", flow_run_name="privacy · {request.study_name}")
def privacy(request: PrivacyRequest) -> str:
    """Return in a sentence what is memorised more than chance would have it; summary and report have the tables.

    Nothing is trained. Launched again it does not read a dialogue twice.

    Args:
        request: The study.
    """
    with tags(study_tag(request.study_name)):
        return publish_privacy(request)
