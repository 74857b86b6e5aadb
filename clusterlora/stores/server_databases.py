"""The databases of the servers of this machine, from which rows are removed that the servers' own interfaces keep.

MLflow only marks as deleted; Prefect keeps artifacts and events of runs that it deletes. Both are on SQLite, to which the servers may write
meanwhile. What was deleted stays in free pages until a database is rewritten.
"""

import os
import sqlite3
import subprocess
import sys
from collections.abc import Generator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from clusterlora.errors import ServiceDown

_BUSY_SECONDS = 60.0
_AGAIN = "run the same command again when nobody else uses it"
_DELETED_VERSIONS = "SELECT name || '/' || version FROM model_versions WHERE current_stage = 'Deleted_Internal'"

_RUNS = """
CREATE TEMP TABLE gone_flow AS
WITH RECURSIVE gone(id) AS (
    SELECT id FROM flow_run WHERE EXISTS (SELECT 1 FROM json_each(flow_run.tags) AS tag JOIN temp.tags ON tag.value = temp.tags.tag)
        OR EXISTS (SELECT 1 FROM temp.tags WHERE substr(flow_run.name, -length(temp.tags.study) - 2) = '· ' || temp.tags.study)
    UNION
    SELECT flow_run.id FROM flow_run JOIN task_run ON flow_run.parent_task_run_id = task_run.id JOIN gone ON task_run.flow_run_id = gone.id
)
SELECT id FROM gone;
CREATE TEMP TABLE gone_task AS SELECT id FROM task_run WHERE flow_run_id IN (SELECT id FROM gone_flow);
CREATE TEMP TABLE gone_event AS SELECT DISTINCT event_id AS id FROM event_resources WHERE resource_id IN (
    SELECT 'prefect.flow-run.' || id FROM gone_flow
    UNION ALL SELECT 'prefect.task-run.' || id FROM gone_task
    UNION ALL SELECT 'clusterlora.study.' || study FROM temp.tags
);
"""
"""What belongs to a study: runs with its tag or name, runs that those started, and events about any of them."""
_OF_RUNS = "flow_run_id IN (SELECT id FROM gone_flow) OR task_run_id IN (SELECT id FROM gone_task)"
_PURGE = (
    f"DELETE FROM artifact WHERE {_OF_RUNS}",
    f"DELETE FROM artifact_collection WHERE {_OF_RUNS}",
    f"DELETE FROM log WHERE {_OF_RUNS}",
    "DELETE FROM event_resources WHERE event_id IN (SELECT id FROM gone_event)",
    "DELETE FROM events WHERE id IN (SELECT id FROM gone_event)",
    "DELETE FROM automation_event_follower WHERE EXISTS (SELECT 1 FROM temp.tags WHERE instr(follower, in_json))",
    "DELETE FROM automation_bucket WHERE EXISTS (SELECT 1 FROM temp.tags WHERE instr(last_event, in_json))",
    "DELETE FROM composite_trigger_child_firing WHERE EXISTS (SELECT 1 FROM temp.tags WHERE instr(child_firing, in_json))",
    "DELETE FROM task_run_state WHERE task_run_id IN (SELECT id FROM gone_task)",
    "DELETE FROM task_run WHERE id IN (SELECT id FROM gone_task)",
    "DELETE FROM flow_run_input WHERE flow_run_id IN (SELECT id FROM gone_flow)",
    "DELETE FROM flow_run_state WHERE flow_run_id IN (SELECT id FROM gone_flow)",
    "DELETE FROM flow_run WHERE id IN (SELECT id FROM gone_flow)",
)


def purge_mlflow(services: Path, experiments: Sequence[str], uri: str) -> tuple[str, ...]:
    """Remove deleted experiments by `mlflow gc`, and what deleted versions still say; return the names of experiments that are not here.

    A deleted version's row stays, without words: its number must not be another's.

    Args:
        services: folder of the services of this machine.
        experiments: names of experiments that are marked as deleted.
        uri: the server's address.

    Raises:
        ServiceDown: `mlflow gc` fails, or the database is in use for a minute.
    """
    database = services / "mlflow" / "mlflow.db"
    if not database.is_file():
        return tuple(experiments)
    here: dict[str, str] = {}
    runs: list[str] = []
    with _opened(database) as connection:
        for name in experiments:
            for (one,) in connection.execute("SELECT experiment_id FROM experiments WHERE name = ?", (name,)):
                here[name] = str(one)
                runs += [run for (run,) in connection.execute("SELECT run_uuid FROM runs WHERE experiment_id = ?", (one,))]
    if here:
        command = [sys.executable, "-m", "mlflow", "gc", "--backend-store-uri", f"sqlite:///{database}", "--tracking-uri", uri]
        command += ["--artifacts-destination", str(database.parent / "artifacts"), "--experiment-ids", ",".join(here.values())]
        # Not told which, it would remove every run on the server that is marked as deleted.
        command += ["--run-ids", ",".join(runs)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"})
        if done.returncode:
            last = (done.stderr.strip() or done.stdout.strip()).rpartition("\n")[2]
            raise ServiceDown(f"`mlflow gc` on {database} failed: {last}; {_AGAIN}")
    with _opened(database) as connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(f"DELETE FROM model_version_tags WHERE name || '/' || version IN ({_DELETED_VERSIONS})")
        connection.execute("UPDATE model_versions SET storage_location = NULL WHERE current_stage = 'Deleted_Internal'")
        connection.execute("COMMIT")
        _rewrite(connection, database)
    return tuple(name for name in experiments if name not in here)


def purge_prefect(services: Path, studies: Sequence[str]) -> bool:
    """Remove the runs of studies, with their parameters, states, logs, artifacts and events; return whether there is a database.

    Raises:
        ServiceDown: the database is in use for a minute.
    """
    database = services / "prefect" / "prefect.db"
    if not database.is_file():
        return False
    with _opened(database) as connection:
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute("CREATE TEMP TABLE tags (study TEXT, tag TEXT, in_json TEXT)")
        connection.executemany("INSERT INTO temp.tags VALUES (?, ?, ?)", [(name, f"study:{name}", f'study:{name}"') for name in studies])
        connection.execute("BEGIN IMMEDIATE")
        for statement in (*_RUNS.split(";")[:-1], *_PURGE):
            connection.execute(statement)
        connection.execute("COMMIT")
        _rewrite(connection, database)
    return True


@contextmanager
def _opened(database: Path) -> Generator[sqlite3.Connection]:
    try:
        with closing(sqlite3.connect(database, timeout=_BUSY_SECONDS, isolation_level=None)) as connection:
            yield connection
    except sqlite3.OperationalError as problem:
        raise ServiceDown(f"{database} cannot be changed: {problem}; {_AGAIN}") from problem


def _rewrite(connection: sqlite3.Connection, database: Path) -> None:
    """Write the database anew without free pages, and cut its write-ahead log to nothing."""
    connection.execute("VACUUM")
    if connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
        raise ServiceDown(f"{database} is being read; {_AGAIN}")


def empty_logs(services: Path) -> None:
    """Cut the logs of the services, which have lines of everybody's runs, to nothing; processes go on writing to them."""
    for file in (services / "logs").glob("*.log*"):
        os.truncate(file, 0)
