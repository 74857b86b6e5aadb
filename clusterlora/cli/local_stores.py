"""The stores and the model registry of a command that works in this process."""

from typing import TYPE_CHECKING

from clusterlora.cli.orchestration import use_local_services

if TYPE_CHECKING:
    from clusterlora.ports.stores import Stores
    from clusterlora.stores.mlflow_models import Registry


def open_local_stores(*, keep_services_up: bool = False, before_forgetting: bool = False) -> "Stores":
    """Return the stores of the local services if they run, so that the command is tracked in their MLflow; else of the environment.

    Args:
        keep_services_up: register the command as a user of the services until it ends.
        before_forgetting: also where a restored backup still has people who left since.
    """
    use_local_services(keep_up=keep_services_up)
    from clusterlora.wiring import from_environment

    return from_environment(before_forgetting=before_forgetting)


def open_registry() -> "Registry":
    """Return the model registry of the local services if they run, which stay up until the command ends; else of MLFLOW_TRACKING_URI."""
    use_local_services(keep_up=True)
    from clusterlora.wiring import registry_from_environment

    return registry_from_environment()
