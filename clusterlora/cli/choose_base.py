"""Which base model a command uses when its options name none."""

import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from clusterlora.cli.progress import echo_stderr
from clusterlora.errors import BadSettings

if TYPE_CHECKING:
    from clusterlora.ports.stores import Stores
    from clusterlora.settings import Study


def with_base(study: "Study", stores: "Stores") -> "Study":
    """Return the study with a base model where one is needed: people in a terminal are asked for it.

    Synthetic people have the embedded base, and a study that exists has its own.

    Raises:
        BadSettings: own data without a base model, and nobody to ask.
    """
    from clusterlora.settings import chosen_base

    if any(study.name == name for name, *_ in stores.studies.studies()):
        return study
    try:
        chosen_base(study)
    except BadSettings as problem:
        if not sys.stdin.isatty():
            raise
        echo_stderr(str(problem))
        return replace(study, model=replace(study.model, base=click.prompt("base model", err=True).strip()))
    return study
