"""`clusterlora persona`: people who leave."""

import json
from dataclasses import asdict
from pathlib import Path

import click

from clusterlora.cli.local_stores import open_local_stores
from clusterlora.cli.orchestration import services_home
from clusterlora.cli.progress import console_log
from clusterlora.errors import ServiceDown, UnknownName, counted

_FORGET_EXAMPLES = """\b
Examples:
  clusterlora persona forget ana --dry-run        what would be removed and trained again, and how long it takes
  clusterlora persona forget ana                  after an interruption: the same command again
  clusterlora persona forget ana --study demo     from one study and its refreshes alone
  clusterlora persona forget ana --remove-backups and the backups made here that have them
  clusterlora persona forget --restored           who left after the backup that was restored here
  clusterlora persona forget --digest 5f0c...     the person by the digest that --dry-run prints, where an id must not be typed
"""


@click.group(epilog="\b\nExample:\n  clusterlora persona forget ana --dry-run\n")
def persona() -> None:
    """People who leave."""


@persona.command(epilog=_FORGET_EXAMPLES)
@click.argument("persona_id", metavar="[ID]", required=False)
@click.option("--digest", help="The person by the keyed digest of the id instead of the id.")
@click.option("--study", "studies", multiple=True, help="Only from this study and its refreshes; may be given several times.")
@click.option("--remove-backups", is_flag=True, help="Also delete the backups made here that have the person; make a new one then.")
@click.option("--restored", is_flag=True, help="Forget again everybody who left after the backup that was restored here.")
@click.option("--dry-run", is_flag=True, help="Print what would be removed, and change nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the certificate as JSON; with --dry-run what is planned.")
def forget(
    persona_id: str | None,
    digest: str | None,
    studies: tuple[str, ...],
    remove_backups: bool,
    restored: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Remove a person from every study, and train again without them what learned from them.

    Dialogues, answers, scores, the adapters that learned from them, and all results are deleted from the study database, the results,
    MLflow and the Prefect server of this machine. Adapters shared with others are trained again, from the last refresh that never saw the
    person, else from the base model; everybody is answered anew, the methods are compared anew, and the champion's alias moves or stays
    as after any comparison. All of it happens in this process. The certificate names the person by a digest that only this installation
    can check. Nothing is changed while a study runs.
    """
    from clusterlora.pseudonyms import as_pseudonym, pseudonym
    from clusterlora.stages.forget import backups_with, read_certificate, what_to_forget
    from clusterlora.stages.forget import forget as forget_persona
    from clusterlora.stages.forget_words import plan_lines

    if restored:
        if persona_id is not None or digest is not None or studies or dry_run or remove_backups:
            raise click.UsageError("--restored knows whom to forget: give nothing else but --json")
        forget_restored(as_json=as_json)
        return
    if (persona_id is None) == (digest is None):
        raise click.UsageError("name the person: clusterlora persona forget ID, or --digest DIGEST")
    stores = open_local_stores(keep_services_up=True)
    person = as_pseudonym(digest) if digest is not None else pseudonym(stores.home, str(persona_id), make_key=True)
    if dry_run:
        plan = what_to_forget(person, stores, only=studies)
        backups = backups_with(person, studies, stores)
        click.echo(json.dumps(asdict(plan)) if as_json else "\n".join((f"digest {person}", *plan_lines(plan, backups))))
        return
    with console_log() as log:
        file = forget_persona(person, stores, log, only=studies, services=_services(), remove_backups=remove_backups)
    certificate = read_certificate(file)
    if as_json:
        click.echo(json.dumps(asdict(certificate)))
        return
    for one in certificate.studies:
        again = f"{len(one.retrained)} trained again; champion {one.champion or 'none'} before, {one.champion_after or 'none'} now"
        click.echo(f"study {one.study}: {one.n_dialogues} dialogues and {len(one.removed)} adapters removed, {again}")
    for backup in certificate.backups:
        click.echo(f"backup {backup} removed; make a new one: clusterlora backup FILE")
    for sentence in certificate.left:
        click.echo(f"out of reach: {sentence}")
    click.echo(f"certificate {file.with_suffix('.md')}")


def forget_restored(*, as_json: bool = False) -> None:
    """Forget again everybody who left after the backup that was restored here, and say so in one line."""
    from clusterlora.stages.forget_again import forget_again, is_restored

    stores = open_local_stores(keep_services_up=True, before_forgetting=True)
    if not is_restored(stores.home):
        raise UnknownName(f"nobody has to be forgotten again at {stores.home}")
    with console_log() as log:
        files = forget_again(stores, log, services=_services())
    if as_json:
        click.echo(json.dumps([str(file) for file in files]))
        return
    pages = "".join(f"; certificate {file.with_suffix('.md')}" for file in files)
    click.echo(f"{counted(len(files), 'removal')} repeated of people who left after the backup was made{pages}")


def _services() -> Path | None:
    """Return the folder of the servers of this machine; None where only the wheel is installed, which starts none."""
    try:
        return services_home()
    except ServiceDown:
        return None
