"""The stores that a command uses when it works in this process."""

from typing import TYPE_CHECKING

from clusterlora.cli.orchestration import use_running_stack

if TYPE_CHECKING:
    from clusterlora.ports import Stores


def stores_here(*, works: bool = False) -> "Stores":
    """Return the stores of the local stack when it runs (so that work shows in its MLflow), else of the environment.

    Args:
        works: whether the command needs them for longer than a look.
    """
    use_running_stack(works=works)
    from clusterlora.wiring import from_environment

    return from_environment()
