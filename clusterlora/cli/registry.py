"""`clusterlora registry`: list, show, promote, roll back and export registered models."""

import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from clusterlora.cli.local_stores import open_registry
from clusterlora.cli.orchestration import tell_champion_moved
from clusterlora.cli.printing import echo_columns
from clusterlora.errors import counted, harmless

if TYPE_CHECKING:
    from clusterlora.stores.mlflow_models import Version

_FORMATS = ["vllm", "peft", "gguf", "merged"]
_WHICH = "MODEL is NAME (its champion, else its latest version), NAME@ALIAS, NAME@VERSION or NAME/VERSION."


@click.group(epilog="\b\nExample:\n  clusterlora registry list\n")
def registry() -> None:
    """List, show, promote and export registered models."""


@registry.command("list", epilog="\b\nExample:\n  clusterlora registry list --study demo\n")
@click.option("--study", help="Only the models of this study.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
def list_models(study: str | None, as_json: bool) -> None:
    """List the latest version of every model, and every version that has an alias."""
    versions = open_registry().versions(study)
    if as_json:
        click.echo(json.dumps([_record(version) for version in versions]))
        return
    rows = [
        (
            version.name,
            version.version,
            version.tags.get("method", "-"),
            version.tags.get("comparison", "not compared"),
            " ".join(f"@{alias}" for alias in version.aliases),
        )
        for version in versions
    ]
    echo_columns(("MODEL", "VERSION", "METHOD", "COMPARISON", "ALIASES"), rows)
    if not versions:
        click.echo("no registered models yet; a study registers its models when it ends: clusterlora study run --preset quick")


@registry.command(help=f"Print a model's card and tags. {_WHICH}", epilog="\b\nExample:\n  clusterlora registry show demo@champion\n")
@click.argument("model")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(model: str, as_json: bool) -> None:
    """Print a model's card, version, aliases and tags."""
    version = open_registry().version(model)
    if as_json:
        click.echo(json.dumps(_record(version) | {"card": version.card}))
        return
    from clusterlora.evaluation.markdown import as_plain_text

    click.echo(harmless(as_plain_text(version.card)) or f"# {version.name}\n")
    click.echo(f"version {version.version}, aliases: {', '.join(version.aliases) or 'none'}, created {version.created}")
    for tag, value in sorted(version.tags.items()):
        click.echo(f"  {tag:<20} {harmless(value)}")


@registry.command(
    help=f"Make a version the champion. Refused unless its method is the champion of its study's comparison. {_WHICH}",
    epilog="\b\nExample:\n  clusterlora registry promote demo/3\n",
)
@click.argument("model")
@click.option("--force", "reason", metavar="REASON", help="Promote it anyway; the reason is stored with the version.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def promote(model: str, reason: str | None, as_json: bool) -> None:
    """Make a version the champion."""
    model_registry = open_registry()
    version = model_registry.version(model)
    model_registry.promote(version, forced_because=reason)
    if (study := version.tags.get("study")) is not None:
        tell_champion_moved(study, f"{version.name} version {version.version} answers{f', forced: {reason}' if reason else ''}")
    click.echo(
        json.dumps({"name": version.name, "version": version.version, "alias": "champion"})
        if as_json
        else f"{version.name} version {version.version} is the champion"
    )


@registry.command(epilog="\b\nExample:\n  clusterlora registry history demo\n")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
def history(name: str, as_json: bool) -> None:
    """Print the champions that a model has had, with their studies, and why each became it; the last ones, where there were many."""
    model_registry = open_registry()
    moves = model_registry.history(name)
    studies = model_registry.studies(name)
    rows = [(move.at or "-", move.version, studies.get(move.version, "removed"), "back" if move.back else "", move.why) for move in moves]
    if as_json:
        click.echo(json.dumps([asdict(move) | {"study": studies.get(move.version)} for move in moves]))
        return
    echo_columns(("AT", "VERSION", "STUDY", "", "WHY"), rows)
    if not rows:
        click.echo(f"model {name} has had no champion")


@registry.command(epilog='\b\nExample:\n  clusterlora registry rollback demo --because "answers got worse on Monday"\n')
@click.argument("name")
@click.option("--because", "reason", required=True, help="Why; it is kept in the model's history.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def rollback(name: str, reason: str, as_json: bool) -> None:
    """Give the champion alias back to the version that had it before. Done twice, it goes back by two.

    A running `clusterlora serve` loads that version; the next refresh goes on from it.
    """
    version = open_registry().rollback(name, reason)
    tell_champion_moved(version.tags.get("study", name), f"{version.name} version {version.version} answers again: {reason}")
    click.echo(
        json.dumps({"name": version.name, "version": version.version, "alias": "champion", "study": version.tags.get("study")})
        if as_json
        else f"{version.name} version {version.version}, of study {version.tags.get('study')}, is the champion again"
    )


@registry.command(
    help=f"Write a model as PEFT folders, GGUF files or full weights, and the command that serves them. {_WHICH}",
    epilog="\b\nExample:\n  clusterlora registry export demo@champion --format vllm --out exported && cat exported/serve.sh\n",
)
@click.argument("model")
@click.option(
    "--format",
    "form",
    type=click.Choice(_FORMATS),
    default="vllm",
    show_default=True,
    help="What is to load it; merged: adapters added to the base, a full model each.",
)
@click.option("--persona", "persona_id", metavar="ID", help="Only what answers this person.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder to write to, empty or absent.")
@click.option("--json", "as_json", is_flag=True, help="Print what was written as JSON.")
def export(model: str, form: Any, persona_id: str | None, out: Path, as_json: bool) -> None:
    """Write a model as PEFT folders, GGUF files or full weights, with the command that serves them."""
    from clusterlora.serving.export import export as export_model

    model_registry = open_registry()
    with tempfile.TemporaryDirectory() as temporary:
        files = model_registry.download(model_registry.version(model), Path(temporary))
        exported = export_model(files, out, form, persona_id=persona_id)
    if as_json:
        click.echo(json.dumps(asdict(exported) | {"folder": str(exported.folder)}))
        return
    click.echo(
        f"{counted(len(exported.adapters), 'model' if form == 'merged' else 'adapter')} in "
        f"{out / ('merged' if form == 'merged' else 'adapters')}, the route of each persona in {out / 'routes.json'}; serve them with:\n"
    )
    click.echo(exported.command)


@registry.command(
    help=f"Upload a model to the Hugging Face Hub, with its card; to a private repository unless told otherwise. {_WHICH}",
    epilog="\b\nExample:\n  HF_TOKEN=... clusterlora registry push-to-hub demo@champion ana/demo --format peft\n",
)
@click.argument("model")
@click.argument("repository", metavar="OWNER/NAME")
@click.option("--format", "form", type=click.Choice(_FORMATS), default="peft", show_default=True, help="As in `registry export`.")
@click.option("--persona", "persona_id", metavar="ID", help="Only what answers this person.")
@click.option(
    "--public",
    is_flag=True,
    help="Everybody may see the repository, and in it who has which adapter; else a public one is refused, and a new one is private.",
)
@click.option("--json", "as_json", is_flag=True, help="Print where it is as JSON.")
def push_to_hub(model: str, repository: str, form: Any, persona_id: str | None, public: bool, as_json: bool) -> None:
    """Export a model into a temporary folder and upload it with its card."""
    from clusterlora.serving.export import export as export_model
    from clusterlora.serving.hub_upload import check_access, push, write_card
    from clusterlora.stores.routing_table import read_routing_table

    check_access(repository, public=public)
    model_registry = open_registry()
    version = model_registry.version(model)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "export"
        files = model_registry.download(version, Path(temporary))
        base = read_routing_table((files / "routes.json").read_text(encoding="utf-8")).model.base
        exported = export_model(files, folder, form, persona_id=persona_id)
        write_card(folder, card=version.card, base=base, base_model=exported.base_model, licence=exported.licence, form=form)
        uploaded = push(folder, repository, public=public, message=f"{version.name} version {version.version}, {form}")
    if as_json:
        click.echo(json.dumps(asdict(uploaded)))
        return
    click.echo(f"{version.name} version {version.version} is at {uploaded.page} ({'private' if uploaded.private else 'public'})")


def _record(version: "Version") -> dict[str, Any]:
    return {
        "name": version.name,
        "version": version.version,
        "aliases": list(version.aliases),
        "created": version.created,
        "tags": dict(version.tags),
    }
