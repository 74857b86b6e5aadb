"""Every fault by its name, and which seed strikes which."""

from tests.all.chaos import blows, store_blows
from tests.all.chaos.blows import Blow, kill_run_of, kill_service
from tests.all.chaos.place import ClockStackPlace, ColdStackPlace, SmallDiskPlace, SqlitePlace, StackPlace

CTRL_C = "Ctrl-C"

BLOWS: dict[str, Blow] = {
    "SIGKILL of the trainer": Blow(blows.kill_trainer),
    "SIGKILL of MLflow": Blow(kill_service("mlflow")),
    "SIGKILL of PostgreSQL": Blow(kill_service("postgres")),
    "SIGKILL of a training run's process": Blow(kill_run_of("flows.train.train"), StackPlace),
    "MLflow silent for a minute": Blow(blows.silence_mlflow),
    "no file can grow": Blow(blows.fill_disk),
    "SIGKILL of the study's flow process": Blow(kill_run_of("flows.study.study"), StackPlace),
    "slow database": Blow(blows.slow_down_database, slow=True),
    "two studies launched twice": Blow(blows.launch_twice),
    "SIGKILL of a worker": Blow(blows.kill_worker, StackPlace),
    "the clock jumps": Blow(blows.jump_clock),
    "SIGKILL of the Prefect server": Blow(blows.kill_prefect, StackPlace),
    "SIGKILL of the workers and a run": Blow(blows.kill_worker_and_run, StackPlace),
    "the disk is full": Blow(store_blows.fill_small_disk, SmallDiskPlace),
    "the database is deleted": Blow(store_blows.delete_database, SqlitePlace, loses_record=True),
    "the database is locked for two minutes": Blow(store_blows.lock_database, SqlitePlace),
    "the database is read-only": Blow(store_blows.make_database_read_only),
    "SIGKILL as an alias moves": Blow(blows.fail_by_itself, sabotage=("CHAOS_DIES_AT", ("before", "after"))),
    "two hosts an hour apart": Blow(store_blows.join_from_other_clock),
    "ports taken between check and use": Blow(blows.fail_by_itself, ColdStackPlace, sabotage=("CHAOS_TAKES_PORTS", ("both",))),
    "Prefect's clock jumps": Blow(blows.jump_clock, ClockStackPlace),
    "a worker of another version": Blow(store_blows.start_other_worker, StackPlace),
    CTRL_C: Blow(blows.press_ctrl_c, StackPlace),
}

CYCLE = (*BLOWS, *[CTRL_C] * 4)
"""The faults of so many seeds in a row: four cycles press Ctrl-C 20 times."""


def blow_of(seed: int) -> str:
    """Return the fault of a seed."""
    return CYCLE[(seed - 1) % len(CYCLE)]
