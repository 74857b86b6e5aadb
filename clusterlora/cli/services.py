"""`clusterlora up` and `clusterlora down`: the local servers and workers."""

import json

import click

from clusterlora.cli.orchestration import deployments, stack_home
from clusterlora.cli.progress import say


@click.command(epilog="\b\nExample:\n  clusterlora up --workers 1      one training at a time\n")
@click.option("--workers", type=click.IntRange(min=1), help="Processes for training.  [default: one per GPU, two without any]")
@click.option("--auth/--no-auth", default=None, help="Let Prefect and MLflow ask for passwords, made at random.  [default: as before]")
@click.option("--host", help="Address to listen on; beyond 127.0.0.1 only with --auth.  [default: as before, at first 127.0.0.1]")
@click.option("--json", "as_json", is_flag=True, help="Print the addresses as JSON.")
def up(workers: int | None, auth: bool | None, host: str | None, as_json: bool) -> None:
    """Start Prefect, MLflow and the workers on this machine; what already runs is kept."""
    stack = deployments("stack").up(stack_home(), workers=workers, auth=auth, host=host, log=say)
    if as_json:
        click.echo(json.dumps({"prefect": stack.addresses.prefect, "mlflow": stack.addresses.mlflow, "started": stack.started}))
        return
    click.echo(f"Prefect  {stack.addresses.prefect}")
    click.echo(f"MLflow   {stack.addresses.mlflow}")
    if deployments("passwords").read(stack_home()) is not None:
        click.echo(f"user and passwords: {stack_home() / 'passwords.json'}")
    click.echo("stop them with: clusterlora down")


@click.command(epilog="\b\nExample:\n  clusterlora down      a study that was running continues when it is started again\n")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list of what was stopped.")
def down(as_json: bool) -> None:
    """Stop the local workers and servers; nothing that was finished is lost."""
    stopped = deployments("stack").down(stack_home())
    if as_json:
        click.echo(json.dumps(stopped))
        return
    click.echo(f"stopped {', '.join(stopped)}" if stopped else "nothing was running")
