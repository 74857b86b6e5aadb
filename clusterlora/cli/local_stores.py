"""The stores of a command that works in this process."""

from typing import TYPE_CHECKING

from clusterlora.cli.orchestration import use_local_services

if TYPE_CHECKING:
    from clusterlora.ports.stores import Stores


def open_local_stores(*, keep_services_up: bool = False) -> "Stores":
    """Return the stores of the local services if they run, so that the command is tracked in their MLflow; else of the environment.

    Args:
        keep_services_up: register the command as a user of the services until it ends.
    """
    use_local_services(keep_up=keep_services_up)
    from clusterlora.wiring import from_environment

    return from_environment()
