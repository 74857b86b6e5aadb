"""Command line. Errors are one line per problem. Exit codes: 1 = refused or failed, 2 = wrong usage, 130 = interrupted.

Only click is imported here and in the command modules; a command imports everything else when it runs.
"""

import errno
import logging
import os
import sys
import traceback
from collections.abc import Sequence

import click

from clusterlora import __version__
from clusterlora.cli.assign import assign
from clusterlora.cli.backup import backup, restore
from clusterlora.cli.chat import chat
from clusterlora.cli.cost import cost
from clusterlora.cli.data import data
from clusterlora.cli.doctor import doctor
from clusterlora.cli.local_steps import compare, evaluate, train
from clusterlora.cli.merge import merge
from clusterlora.cli.models import models
from clusterlora.cli.notify import notify
from clusterlora.cli.persona import persona
from clusterlora.cli.privacy import privacy
from clusterlora.cli.prune import prune
from clusterlora.cli.refresh import refresh
from clusterlora.cli.registry import registry
from clusterlora.cli.serve import serve
from clusterlora.cli.services import down, up
from clusterlora.cli.study import study
from clusterlora.cli.study_adapters import adapters
from clusterlora.cli.study_diff import diff
from clusterlora.cli.verify import verify
from clusterlora.errors import ClusterLoraError, harmless, path_problem, printable
from clusterlora.models.device import limit_threads

EXAMPLES = """\b
Examples:
  clusterlora study run --preset quick          the whole study, small
  clusterlora study run --data people.jsonl     the whole study on your own data
  clusterlora train --cluster 0                 train one cluster's adapter in this process
  clusterlora evaluate --cluster 0              score it against unified, as the gate does
  clusterlora compare                           table, figure and verdict
  clusterlora merge demo --kind ties            adapters of single persons merged per cluster, without training
  clusterlora assign --data new_persona.jsonl   choose cluster or unified for a new persona
  clusterlora up / clusterlora down             the local servers and workers
"""


class _Once(logging.Filter):
    """Lets every message through once: a command may read the same data several times, and warn of it each time."""

    def __init__(self) -> None:
        super().__init__()
        self._said: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        is_new = message not in self._said
        self._said.add(message)
        return is_new


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120}, epilog=EXAMPLES)
@click.version_option(__version__, prog_name="clusterlora")
@click.option("--debug", is_flag=True, help="Show tracebacks and debug logs.")
def cli(debug: bool) -> None:
    """Train adapters for everyone, per cluster and per person, and find out which granularity answers people best."""
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_Once())
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", handlers=[handler])
    logging.getLogger("clusterlora").setLevel(logging.DEBUG if debug else logging.INFO)
    limit_threads()
    if not sys.stderr.isatty():
        # Progress bars of model loading would fill a log file.
        os.environ.setdefault("TQDM_DISABLE", "1")


for command in (adapters, cost, diff, privacy, prune, refresh, verify):
    study.add_command(command)
_COMMANDS = (
    *(study, train, evaluate, compare, merge, assign, persona, chat, serve, up, down, doctor, models, registry, data),
    *(backup, restore, notify),
)
for command in _COMMANDS:
    cli.add_command(command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    try:
        exit_code = cli.main(args=argv, prog_name="clusterlora", standalone_mode=False)
    except click.ClickException as error:
        # It repeats what was typed, or what a script was given.
        error.message = harmless(error.message)  # pyrefly: ignore[read-only]
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        return 130
    except BrokenPipeError:
        # The reader (head, less) has closed the pipe; without this, Python prints an error when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:  # noqa: BLE001  (the user gets one line, not a traceback)
        _print_error(error, debug="--debug" in argv)
        return 1
    # A command returns None; `--help` and click's Exit return the exit code.
    return exit_code if isinstance(exit_code, int) else 0


def _print_error(error: Exception, *, debug: bool) -> None:
    if debug:
        click.echo("".join(traceback.format_exception(error)), err=True)
    if isinstance(error, ClusterLoraError):
        for line in str(error).splitlines():
            click.echo(f"error: {printable(line)}", err=True)
        return
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = f" at {error.filename}" if error.filename else ""
        click.echo(f"error: the disk is full{where}; free some space and run the same command again: what finished is kept", err=True)
        return
    if isinstance(error, OSError) and (problem := path_problem(error)) is not None:
        click.echo(f"error: {problem}", err=True)
        return
    if isinstance(error, MemoryError):
        what = printable(next(iter(str(error).splitlines()), "")) or "an allocation failed"
        click.echo(f"error: the memory of this machine ran out: {what}; end other programs, or use less data or a smaller model", err=True)
        return
    if isinstance(error, UnicodeEncodeError) and "\udc80" <= error.object[error.start] <= "\udcff":
        # Python reads a byte of the command line that is no text as such a character.
        click.echo(f"error: {printable(error.object)} is no text: it is not UTF-8; write it in UTF-8", err=True)
        return
    first_line = next(iter(str(error).splitlines()), "")
    click.echo(f"error: unexpected {type(error).__name__}: {first_line}; for the traceback run: clusterlora --debug ...", err=True)
