"""`clusterlora up` and `clusterlora down`: the local servers and workers."""

import json
import shlex

import click

from clusterlora.cli.orchestration import deployments, stack_home
from clusterlora.cli.progress import say

_FOR_OTHERS = (
    *("PREFECT_API_URL", "PREFECT_API_AUTH_STRING", "CLUSTERLORA_DATABASE_URL"),
    *("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"),
)


@click.command(epilog="\b\nExample:\n  clusterlora up --workers 1      one training at a time\n")
@click.option("--workers", type=click.IntRange(min=1), help="Processes for training.  [default: one per GPU, two without any]")
@click.option("--host", help="Address to listen on, to be looked at from other machines.  [default: as before, at first 127.0.0.1]")
@click.option("--exports", is_flag=True, help='Print addresses and passwords for other programs: eval "$(clusterlora up --exports)"')
@click.option("--json", "as_json", is_flag=True, help="Print the addresses as JSON.")
def up(workers: int | None, host: str | None, exports: bool, as_json: bool) -> None:
    """Start Prefect, MLflow and the workers on this machine, until `clusterlora down`; what already runs is kept.

    Both servers ask for a password, which commands and workers know. Your browser gets it by the login link, which works once and for an
    hour; every `clusterlora up` prints another.
    """
    stack = deployments("stack").up(stack_home(), workers=workers, host=host, log=say)
    if exports:
        for name, value in stack.environment().items():
            if name in _FOR_OTHERS:
                click.echo(f"export {name}={shlex.quote(value)}")
        return
    addresses = {"prefect": stack.addresses.prefect, "mlflow": stack.addresses.mlflow, "login": stack.login_link()}
    if as_json:
        click.echo(json.dumps({**addresses, "started": stack.started}))
        return
    click.echo(f"Prefect  {addresses['prefect']}")
    click.echo(f"MLflow   {addresses['mlflow']}")
    click.echo(f"log in   {addresses['login']}   (in your browser, once)")
    click.echo("stop them with: clusterlora down")


@click.command(epilog="\b\nExample:\n  clusterlora down      a study that was running continues when it is started again\n")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list of what was stopped.")
def down(as_json: bool) -> None:
    """Stop the local workers and servers, whoever uses them; nothing that was finished is lost."""
    stack, home = deployments("stack"), stack_home()
    for user in stack.users(home):
        say(f"{user}: goes on when it is run again")
    stopped = stack.down(home)
    if as_json:
        click.echo(json.dumps(stopped))
        return
    click.echo(f"stopped {', '.join(stopped)}" if stopped else "nothing was running")
