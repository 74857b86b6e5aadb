"""`clusterlora up` and `clusterlora down`: the local servers and workers."""

import json

import click

from clusterlora.cli.orchestration import deployments, stack_home
from clusterlora.cli.progress import say


@click.command(epilog="\b\nExample:\n  clusterlora up --workers 1      one training at a time\n")
@click.option("--workers", type=click.IntRange(min=1), help="Processes for training.  [default: one per GPU, two without any]")
@click.option("--json", "as_json", is_flag=True, help="Print the addresses as JSON.")
def up(workers: int | None, as_json: bool) -> None:
    """Start Prefect, MLflow and the workers on this machine; what already runs is kept."""
    stack = deployments("stack").up(stack_home(), workers=workers, log=say)
    if as_json:
        click.echo(json.dumps({"prefect": stack.addresses.prefect, "mlflow": stack.addresses.mlflow, "started": stack.started}))
        return
    click.echo(f"Prefect  {stack.addresses.prefect}")
    click.echo(f"MLflow   {stack.addresses.mlflow}")
    click.echo("stop them with: clusterlora down")


@click.command(epilog="\b\nExample:\n  clusterlora down      a study that was running continues when it is started again\n")
def down() -> None:
    """Stop the local workers and servers; nothing that was finished is lost."""
    stopped = deployments("stack").down(stack_home())
    click.echo(f"stopped {', '.join(stopped)}" if stopped else "nothing was running")
