"""Train LoRA adapters at every granularity and compare them honestly."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clusterlora.notebook import Study

__version__ = "0.1.0"
__all__ = ["Study", "__version__"]


def __getattr__(name: str) -> Any:
    """Import the class of a finished study when it is asked for: importing the package stays light."""
    if name == "Study":
        from clusterlora.notebook import Study

        return Study
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
