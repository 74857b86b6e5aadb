"""Simulates a machine that loses power at a chosen moment, and the resulting content of its disk.

As a program it is what runs there: it imports everything once, then reads from its input what to do and at which sync the power goes, and
forks for each try.
"""

import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from clusterlora.settings import prepared
from tests.fixtures.stages import missing_groups, plan_of

if TYPE_CHECKING:
    from clusterlora.engine.job import TrainingJob

LIBRARY = Path(__file__).with_suffix(".c")
NEVER = 0


@dataclass(frozen=True)
class Machine:
    """A folder whose syncs are known, and the program that works in it."""

    root: Path
    disk: Path
    program: "subprocess.Popen[str]"

    def run(self, work: str, power_goes_at: int = NEVER) -> tuple[str, ...]:
        """Do some work of `WORK`; return what it said was done, and last how it ended: done, power (it went), or what was wrong."""
        assert self.program.stdin is not None
        assert self.program.stdout is not None
        self.program.stdin.write(f"{work} {power_goes_at}\n")
        self.program.stdin.flush()
        return tuple(self.program.stdout.readline().strip().split("; "))

    def lose(self, *, names: bool) -> None:
        """Leave of the files what is on the disk; with `names`, names that were not synced are lost, else only contents are."""
        before = self.root.with_name("before")
        self.root.rename(before)
        self.root.mkdir()
        self._restore(before, before.stat().st_ino, self.root, _paths(before), names=names)
        shutil.rmtree(before)

    def reset(self, studies: Path | None = None) -> None:
        """Start over with a copy of these studies, or with none."""
        shutil.rmtree(self.root / "studies", ignore_errors=True)
        if studies is not None:
            shutil.copytree(studies, self.root / "studies")

    def _restore(self, old: Path, inode: int, new: Path, path_of: dict[int, Path], *, names: bool) -> None:
        synced = self.disk / f"{inode}.folder"
        if names:
            lines = synced.read_text().splitlines() if synced.exists() else []
            entries = {name: int(number) for number, _, name in (line.partition(" ") for line in lines)}
        else:
            entries = {entry.name: entry.stat().st_ino for entry in old.iterdir()}
        for name, number in entries.items():
            content = self.disk / f"{number}.file"
            is_folder = (self.disk / f"{number}.folder").exists() or (number in path_of and path_of[number].is_dir())
            if is_folder:
                (new / name).mkdir()
                self._restore(path_of.get(number, old), number, new / name, path_of, names=names)
            elif content.exists():
                shutil.copyfile(content, new / name)
            else:
                (new / name).touch()


def _paths(root: Path) -> dict[int, Path]:
    return {path.stat().st_ino: path for path in (root, *root.rglob("*"))}


@contextmanager
def machine(folder: Path, base: Path) -> Generator[Machine]:
    """Yield a machine with an empty disk. `base` is the folder of the base model."""
    library, root, disk = folder / "powercut.so", folder / "root", folder / "disk"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O2", "-Wall", "-o", str(library), str(LIBRARY), "-ldl"], check=True)
    root.mkdir()
    disk.mkdir()
    environment = os.environ | {
        "LD_PRELOAD": str(library),
        "POWERCUT_ROOT": str(root),
        "POWERCUT_DISK": str(disk),
        "CLUSTERLORA_HOME": str(root / "studies"),
    }
    command = [sys.executable, "-m", "tests.all.chaos.powercut", str(base)]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        yield Machine(root, disk, program)
        assert program.stdin is not None
        program.stdin.close()


Say = Callable[[str], None]
KEY = "0123456789abcdef"
PEOPLE = {"aaaaaaaaaaaaaaaa": "ana", "bbbbbbbbbbbbbbbb": "ben"}
"""Adapters of single people, in one shard, by key."""


def training_job(scratch: Path) -> "TrainingJob":
    from clusterlora.chat.encoder import TokenSequence
    from clusterlora.engine.job import TrainingJob
    from clusterlora.recipe import Recipe

    return TrainingJob(KEY, "unified", Recipe(rank=1, epochs=2), (TokenSequence((1, 2), (False, True)),), scratch)


def create(_base: Path, _say: Say) -> None:
    from clusterlora.settings import Study
    from clusterlora.wiring import from_environment

    from_environment().studies.create_study(prepared(Study(name="cut"), "float32"))


def write_everything(_base: Path, say: Say) -> None:
    """Write a table and a checkpoint twice, then an adapter, and two in a shard which one of them leaves; say so whenever one is there."""
    import torch
    from safetensors.torch import save_file

    from clusterlora.adapters.weights import weights_sha256
    from clusterlora.durable import write_durably
    from clusterlora.engine import checkpoint
    from clusterlora.values import AdapterSpec, TrainedAdapter
    from clusterlora.wiring import from_environment

    stores = from_environment()
    job = training_job(stores.adapters.scratch(KEY))
    for number in (1, 2):
        write_durably(stores.folder("cut") / "results" / "table.csv", 1000 * f"{number}\n".encode())
        say(f"table {number}")
        checkpoint.write(job, checkpoint.Checkpoint({"a": torch.ones(1000)}, {}, {}, (float(number),)))
        say(f"checkpoint {number}")
    folder = job.scratch / "adapter"
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text("{}")
    save_file({"a": torch.ones(1000)}, folder / "adapter_model.safetensors")
    kept = stores.adapters.save(KEY, folder)
    sha256 = weights_sha256(kept)
    spec = AdapterSpec(name="unified", persona_ids=("p",), recipe=job.recipe)
    stores.studies.save_adapter("cut", TrainedAdapter(KEY, "unified", spec, 1, 1, 1.0, 2.0, 1.0, 9, weights_sha256=sha256))
    say("adapter unified")
    stores.adapters.save_together(dict.fromkeys(PEOPLE, folder))
    of_people = [
        TrainedAdapter(key, name, replace(spec, name=name, scope="person"), 1, 1, 1.0, 2.0, 1.0, 9, weights_sha256=sha256)
        for key, name in PEOPLE.items()
    ]
    stores.studies.save_adapters("cut", of_people, {})
    say("adapter ana")
    stores.studies.forget_adapter(of_people[1].key)
    stores.adapters.drop([of_people[1].key])
    say("without ben")


def study(base: Path, _say: Say) -> None:
    """Run a study of two people from its data to its tables, in this process; any step but an adapter's last ends with a checkpoint."""
    from clusterlora.engine import checkpoint, training_slots
    from clusterlora.planning.attempts import next_request
    from clusterlora.ports.run_log import SilentLog
    from clusterlora.recipe import Recipe
    from clusterlora.requests import EvaluationRequest
    from clusterlora.settings import ClusteringSettings, DataSettings, EvaluationSettings, ModelSettings, Study, SyntheticSettings
    from clusterlora.stages.cluster import cluster_study
    from clusterlora.stages.compare import compare_study
    from clusterlora.stages.evaluate import evaluate
    from clusterlora.stages.prepare import prepare_study
    from clusterlora.stages.register import register_models
    from clusterlora.stages.train import train_group
    from clusterlora.wiring import from_environment

    checkpoint.CHECKPOINT_SECONDS = -1.0
    training_slots._WRITING_SHARE = 1e9
    settings = Study(
        name="cut",
        methods=("unified", "per_persona"),
        data=DataSettings(train=2, val=1, test=1, synthetic=SyntheticSettings(cluster_sizes=(1, 1), dialogues=4)),
        model=ModelSettings(base=str(base), max_length=1024, dtype="float32"),
        recipe=Recipe(rank=1, epochs=2, target_modules=("q_proj",)),
        clustering=ClusteringSettings(k=2, sizes=(1, 1), algorithm="responses"),
        evaluation=EvaluationSettings(max_new_tokens=2, metrics=("nll",), headline="nll", selection_metric="nll", bootstrap_draws=100),
    )
    stores, log = from_environment(), SilentLog()
    prepare_study(settings, stores, log)
    cluster_study(settings.name, stores, log)
    for group in missing_groups(settings, stores, tuple(plan_of(settings, stores).specs)):
        train_group(next_request(settings, group, stores), stores, log)
    evaluate(EvaluationRequest(study_name=settings.name), stores, log)
    compare_study(settings.name, stores, log)
    register_models(settings.name, stores, log)


WORK: Mapping[str, Callable[[Path, Say], None]] = {"create": create, "study": study, "files": write_everything}


def _start_machine() -> int:
    """Take everything for synced that is there, by syncing it; return the number of syncs.

    The process that does the work must do this: it keeps open what it synced, and a name never stands for a later file with the same inode.
    """
    for file in Path(os.environ["POWERCUT_DISK"]).iterdir():
        file.unlink()
    root = Path(os.environ["POWERCUT_ROOT"])
    paths = (root, *root.rglob("*"))
    for path in paths:
        opened = os.open(path, os.O_RDONLY)
        os.fsync(opened)
        os.close(opened)
    return len(paths)


def _try(base: Path, work: str, power_goes_at: int) -> str:
    """Fork, and return what the child said and how it ended."""
    ready, output = os.pipe()
    child = os.fork()
    if child == 0:
        n_synced = _start_machine()
        os.environ["POWERCUT_AT"] = str(n_synced + power_goes_at if power_goes_at else NEVER)

        def say(what: str) -> None:
            os.write(output, f"{what}; ".encode())

        try:
            WORK[work](base, say)
            say("done")
        except BaseException as problem:  # noqa: BLE001  (told to whoever asked)
            say(f"{type(problem).__name__}: {problem}".replace("\n", " "))
        os._exit(0)
    os.close(output)
    with os.fdopen(ready) as words:
        said_so_far = words.read()
    _, status = os.waitpid(child, 0)
    return said_so_far + ("power" if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL else "")


def _warm_up() -> None:
    import clusterlora.engine.training
    import clusterlora.stages.compare
    import clusterlora.stages.evaluate
    import clusterlora.stages.register
    import clusterlora.stores.sql
    import clusterlora.wiring  # noqa: F401


if __name__ == "__main__":
    _warm_up()
    # Everything that was ever on the disk stays open.
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    for line in sys.stdin:
        asked, at = line.split()
        sys.stdout.write(_try(Path(sys.argv[1]), asked, int(at)).removesuffix("; ") + "\n")
        sys.stdout.flush()
