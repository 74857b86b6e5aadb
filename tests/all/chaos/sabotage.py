"""Programs that fail at a moment of their own: what CHAOS_DIES_AT and CHAOS_TAKES_PORTS say is done to the process that has them."""

import os
import signal
import socket
from typing import Any

_stolen: list[socket.socket] = []
"""Ports that are held until this process ends."""


def main() -> int:
    """The command line of clusterlora, sabotaged."""
    prepare()
    from clusterlora.cli import main as real

    return real()


def prepare() -> None:
    """Do to this process what its environment says."""
    if moment := os.environ.get("CHAOS_DIES_AT"):
        die_at_alias(moment)
    if os.environ.get("CHAOS_TAKES_PORTS"):
        take_ports()


def die_at_alias(moment: str) -> None:
    """Kill this process as an alias of a registered model moves, right before or right after."""
    from mlflow import MlflowClient

    real = MlflowClient.set_registered_model_alias

    def move(self: Any, *arguments: Any, **named: Any) -> None:
        if moment == "after":
            real(self, *arguments, **named)
        os.kill(os.getpid(), signal.SIGKILL)

    MlflowClient.set_registered_model_alias = move


def take_ports() -> None:
    """Take each port of a server at the moment at which it was found free."""
    from deployments import local_services

    real = local_services._is_free

    def is_free(port: int) -> bool:
        free = real(port)
        if free:
            _stolen.append(socket.create_server(("127.0.0.1", port)))
        return free

    local_services._is_free = is_free
