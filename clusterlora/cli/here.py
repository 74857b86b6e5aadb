"""The stores that a command uses when it works in this process."""

from typing import TYPE_CHECKING

from clusterlora.cli.orchestration import use_running_stack

if TYPE_CHECKING:
    from clusterlora.ports import Stores


def stores_here() -> "Stores":
    """Return the stores of the local stack when it runs (so that work shows in its MLflow), else of the environment."""
    use_running_stack()
    from clusterlora.wiring import from_environment

    return from_environment()
