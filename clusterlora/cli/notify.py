"""`clusterlora notify`: let people hear of what happens to studies."""

import json
import os

import click

from clusterlora.cli.local_stores import open_registry
from clusterlora.cli.orchestration import deployments, services_home, use_local_services
from clusterlora.cli.progress import echo_stderr
from clusterlora.errors import BadSettings, ServiceDown

_EXAMPLES = """\b
Examples:
  clusterlora notify https://hooks.example.com/team         JSON with subject and text
  clusterlora notify --block slack-webhook/team             through a block made on Prefect's page
  clusterlora notify --off
"""


@click.command(epilog=_EXAMPLES)
@click.argument("url", required=False)
@click.option("--block", metavar="TYPE/NAME", help="A notification block of Prefect instead: Slack, Teams, mail, PagerDuty, ...")
@click.option("--off", is_flag=True, help="Tell nobody any more.")
@click.option("--json", "as_json", is_flag=True, help="Print what was set up as JSON.")
def notify(url: str | None, block: str | None, off: bool, as_json: bool) -> None:
    """Send a message when a study finished or failed, a gate refused, a run crashed, a champion moved, dialogues drift,
    or a watched file is left.

    Prefect's automations send it, so it works while the server runs. With a URL, MLflow's registry posts to it as well when an alias moves,
    whoever moved it; MLflow takes https addresses of public hosts only, unless its server is told otherwise (docs/operations.md). A later
    call replaces both receivers.
    """
    if sum((url is not None, block is not None, off)) != 1:
        raise click.UsageError("give one of URL, --block and --off")
    if url is not None and not url.startswith(("http://", "https://")):
        raise click.UsageError(f"{url} is no address; write https://host/path")
    use_local_services(keep_up=True)
    services = deployments("local_services").status(services_home())
    if services is None and not os.environ.get("PREFECT_API_URL"):
        raise ServiceDown("there is no Prefect server to send notifications; start it with `clusterlora up`, or set PREFECT_API_URL")
    notifications = deployments("notifications")
    if url is not None:
        names = notifications.notify_url(services, url)
    else:
        names = notifications.notify_nobody(services) if off else notifications.notify_block(services, block)
    by_mlflow = _mlflow(url)
    if as_json:
        click.echo(json.dumps({"automations": names, "mlflow_webhook": by_mlflow is None and url is not None}))
        return
    for name in names:
        click.echo(f"{'removed  ' if off else 'prefect  '}{name}")
    if url is not None and by_mlflow is None:
        click.echo("mlflow   an alias moved")


def _mlflow(url: str | None) -> str | None:
    """Let MLflow's webhook call this address only, or nobody; return why that failed, after saying so."""
    try:
        open_registry().call_when_alias_moves(url)
    except (BadSettings, ServiceDown) as problem:
        if url is not None:
            echo_stderr(f"MLflow does not call it itself: {problem}")
        elif isinstance(problem, ServiceDown):
            echo_stderr(f"MLflow still calls whom it called, if anybody: {problem}")
        return str(problem)
    return None
