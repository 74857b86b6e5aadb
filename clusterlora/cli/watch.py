"""Live view of a study in the terminal: phases with expected times, scores so far, running training, GPU and memory."""

import shutil
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from clusterlora.cli.orchestration import in_prefect
from clusterlora.cli.printing import print_whole

if TYPE_CHECKING:
    from clusterlora.ports.stores import Stores

REFRESH_SECONDS = 2.0
_ENDED = ("finished", "failed", "cancelled")


def watch(name: str, stores: "Stores") -> None:
    """Redraw the view until the study ends or Ctrl-C is pressed; without a terminal print it once."""
    console = Console()
    if not console.is_terminal:
        print_whole(current_view(name, stores))
        return
    with Live(console=console, auto_refresh=False) as live:
        while True:
            live.update(current_view(name, stores), refresh=True)
            if stores.studies.status(name) in _ENDED:
                return
            time.sleep(REFRESH_SECONDS)


def current_view(name: str, stores: "Stores") -> Group:
    """Return the current view."""
    from clusterlora.clustering.summary import sentence
    from clusterlora.errors import harmless
    from clusterlora.planning.study_state import read_state
    from clusterlora.progress.estimate import sentences
    from clusterlora.progress.timeline import against_unified, next_step, phases
    from clusterlora.stages.samples import latest_samples

    state = read_state(name, stores)
    seen = in_prefect({name: state.status}).get(name)
    table = Table(title=f"{name}: {seen.status if seen else state.status}", title_justify="left")
    for column in ("phase", "state", "took", "expected", ""):
        table.add_column(column, justify="right" if column in ("took", "expected") else "left")
    for phase in phases(state):
        table.add_row(phase.name, phase.state, _format_duration(phase.spent), _format_duration(phase.expected), phase.detail)
    open_attempts = [attempt for attempt in state.attempts if attempt.state == "running"]
    stopped = seen is not None and seen.stopped
    lines = [sentence(state.clustering)] if state.clustering else []
    if not stopped:
        lines += [f"running {a.group}, attempt {a.number}, micro-batch {a.micro_batch}" for a in open_attempts]
        lines += sentences(state)
    lines += against_unified(state)
    lines += [str(note) for note in seen.notes] if seen else []
    lines += latest_samples(stores.folder(name))
    lines += [machine_usage()] if stopped else [f"next: {next_step(state)}", machine_usage()]
    return Group(table, *(Text(harmless(line)) for line in lines))


def machine_usage() -> str:
    """Return the usage of memory and GPUs in one line."""
    parts: list[str] = []
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in meminfo.read_text().splitlines() if len(line.split()) > 1}
        total = kilobytes["MemTotal"]
        parts.append(f"memory {(total - kilobytes['MemAvailable']) / 1e6:.1f} of {total / 1e6:.1f} GB")
    tool = shutil.which("nvidia-smi")
    if tool is not None:
        query = [tool, "--query-gpu=index,utilization.gpu,memory.used,memory.total", "--format=csv,noheader"]
        completed = subprocess.run(query, capture_output=True, text=True, check=False)
        parts += [f"GPU {line}" for line in completed.stdout.splitlines()]
    else:
        parts.append("no GPU")
    return " · ".join(parts)


def _format_duration(seconds: Any) -> str:
    if seconds is None:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
