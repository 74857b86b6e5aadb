"""`mlflow server` in one process: `python -m deployments.mlflow_server --port 5000 ...`, with the options of MLflow's own command.

That command prepares the database and the environment of the server, starts it as a second process, and waits for it until the end with
190 MB of imports. Here it becomes the server.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from typing import NoReturn

import mlflow.server
from mlflow.cli import cli


def _become(command: Sequence[str], *, extra_env: Mapping[str, str], **_: object) -> NoReturn:
    os.execvpe(command[0], list(command), {**os.environ, **extra_env})


if __name__ == "__main__":
    # Were it called otherwise in a later MLflow, the server would again be a second process.
    mlflow.server._exec_cmd = _become  # pyrefly: ignore[bad-assignment]
    cli(["server", *sys.argv[1:]], prog_name="mlflow")
