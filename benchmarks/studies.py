"""Cost of finished studies, and how it grows with people: `python -m benchmarks.studies NAME=URL ... --memory NAME=LOG ... --out docs`.

Run the studies before, one after another on a quiet machine, each under `benchmarks.memory`: docs/scale.toml has their settings and
the command. They replace those in scale.json, and scale.md is written again.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.memory import killed_after, peak
from benchmarks.scale import page
from clusterlora.durable import write_durably
from clusterlora.metadata import Provenance
from clusterlora.progress.timing import seconds_by_phase
from clusterlora.stores.sql import SqlStudyStore


def measured(name: str, url: str, memory: Path | None) -> dict[str, Any]:
    """Return the size of a finished study, the revision that ran it, its seconds by phase over all of its runs, and its memory and time."""
    studies = SqlStudyStore(url)
    made_from = studies.metadata(name, Provenance)
    assert made_from is not None, f"study {name} was not prepared"
    return {
        "people": made_from.n_personas,
        "dialogues": made_from.n_dialogues,
        "revision": made_from.git_revision,
        "seconds": {phase: round(seconds, 2) for phase, seconds in seconds_by_phase(studies.seconds(name)).items()},
        **({"most_gb": round(peak(memory)[0], 2), "minutes": round(peak(memory)[1], 1)} if memory else {}),
        **({"killed_after": round(minutes, 1)} if memory and (minutes := killed_after(memory)) else {}),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Read the studies that are named, and write both files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("studies", nargs="+", metavar="NAME=DATABASE_URL")
    parser.add_argument("--memory", nargs="*", default=[], metavar="NAME=LOG", help="What benchmarks.memory wrote while a study ran.")
    parser.add_argument("--out", type=Path, required=True, help="Folder of scale.json and scale.md.")
    parser.add_argument("--busy", nargs="*", default=[], metavar="NAME", help="Studies that ran beside other work: their times count less.")
    options = parser.parse_args(argv)
    path = options.out / "scale.json"
    contents = json.loads(path.read_text(encoding="utf-8"))
    named = (one.split("=", 1) for one in options.studies)
    logs = {name: Path(log) for name, log in (one.split("=", 1) for one in options.memory)}
    studies = [{**measured(name, url, logs.get(name)), **({"busy": True} if name in options.busy else {})} for name, url in named]
    contents["studies"] = sorted(studies, key=lambda study: study["people"])
    write_durably(path, (json.dumps(contents, indent=1) + "\n").encode())
    write_durably(options.out / "scale.md", page(contents, options.out / "benchmarks-avx2.json").encode())


if __name__ == "__main__":
    main()
