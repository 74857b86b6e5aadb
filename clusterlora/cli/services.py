"""`clusterlora up` and `clusterlora down`: the local servers and workers."""

import json
import shlex
from contextlib import suppress

import click

from clusterlora.cli.options import N_WORKERS
from clusterlora.cli.orchestration import deployments, services_home
from clusterlora.cli.progress import echo_stderr
from clusterlora.errors import ServiceDown

_EXPORTED = (
    *("PREFECT_API_URL", "PREFECT_API_AUTH_STRING", "CLUSTERLORA_HOME", "CLUSTERLORA_DATABASE_URL"),
    *("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"),
)


@click.command(epilog="\b\nExample:\n  clusterlora up --workers 1      one training at a time\n")
@click.option(
    "--workers",
    type=N_WORKERS,
    help="Worker processes for training; with at most half as many as GPUs each sees several.  [default: as last asked for; at first one "
    "per GPU, or 2]",
)
@click.option("--host", help="Address to listen on, for access from other machines.  [default: the current one, at first 127.0.0.1]")
@click.option("--exports", is_flag=True, help='Print addresses and passwords as shell exports: eval "$(clusterlora up --exports)"')
@click.option("--json", "as_json", is_flag=True, help="Print the addresses as JSON.")
def up(workers: int | None, host: str | None, exports: bool, as_json: bool) -> None:
    """Start Prefect, MLflow and the workers on this machine, until `clusterlora down`. Processes that run are left alone.

    Both servers require a password, which commands and workers have. Your browser gets it through the login link, which is valid once and
    for an hour; every `clusterlora up` prints another.
    """
    services = deployments("local_services").up(services_home(), workers=workers, host=host, log=echo_stderr)
    if exports:
        for name, value in services.environment().items():
            if name in _EXPORTED:
                click.echo(f"export {name}={shlex.quote(value)}")
        return
    addresses = {"prefect": services.addresses.prefect, "mlflow": services.addresses.mlflow, "login": services.login_link()}
    if as_json:
        click.echo(json.dumps({**addresses, "started": services.started}))
        return
    click.echo(f"Prefect  {addresses['prefect']}")
    click.echo(f"MLflow   {addresses['mlflow']}")
    click.echo(f"log in   {addresses['login']}   (in your browser, once)")
    click.echo("stop them with: clusterlora down")


@click.command(epilog="\b\nExample:\n  clusterlora down      run a study again to continue it\n")
@click.option("--json", "as_json", is_flag=True, help="Print the names of the stopped processes as a JSON list.")
def down(as_json: bool) -> None:
    """Stop the local workers and servers, even if others use them. Nothing that finished is lost."""
    local_services, home = deployments("local_services"), services_home()
    # Where the file that names them is damaged, nobody can be named, and the processes are found all the same.
    with suppress(ServiceDown):
        for user in local_services.other_users(home):
            echo_stderr(f"{user}: run it again to continue")
    stopped = local_services.down(home)
    if as_json:
        click.echo(json.dumps(stopped))
        return
    click.echo(f"stopped {', '.join(stopped)}" if stopped else "nothing was running")
