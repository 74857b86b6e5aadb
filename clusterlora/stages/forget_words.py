"""A certificate of a person's removal as a page, which has none of their words and names them by a digest alone."""

from collections.abc import Iterator, Sequence

from clusterlora.errors import counted
from clusterlora.progress.timing import duration
from clusterlora.stages.forget_plan import AdapterRecord, Certificate, Removal
from clusterlora.stores.departures import KnownBackup


def plan_lines(plan: Certificate, backups: Sequence[KnownBackup] = ()) -> Iterator[str]:
    """Yield what would be removed and trained again, how long that takes, and which backups have the person."""
    for one in plan.studies:
        keep = sorted({study for adapter in one.removed for study in adapter.still_in})
        shared = sum(adapter.n_personas > 1 for adapter in one.removed)
        adapters = f"{counted(len(one.removed), 'adapter')}, {shared} of them shared with others"
        yield f"study {one.study}: {counted(one.n_dialogues, 'dialogue')}, {counted(one.n_answers, 'answer')}, {adapters}"
        yield f"  {again(one)}"
        if keep:
            yield f"  {', '.join(keep)} keep the same weights of some of these adapters"
    if seconds := sum(one.seconds for one in plan.studies):
        yield f"about {duration(seconds)} of work by what it took before, in one process"
    for one in backups:
        yield f"backup {one.file} of {one.made} has them: --remove-backups removes it"


def again(one: Removal) -> str:
    """Return what is done anew in a study."""
    if one.whole:
        return "its dialogues were exchanged among people, so the whole study is removed"
    if not one.ended:
        return "it has compared nothing yet, and goes on when it is run"
    return (
        f"trained again without them: {', '.join(a.name for a in one.removed if a.n_personas > 1) or 'nothing'}; everybody is answered anew"
    )


def markdown(certificate: Certificate) -> str:
    """Return a certificate as Markdown."""
    lines = [
        "# Certificate of removal",
        "",
        f"Person (HMAC-SHA256 of the id under this installation's key): `{certificate.person}`",
        "",
        f"Removed by {certificate.erased}, trained and compared anew by {certificate.at}.",
    ]
    for one in certificate.studies:
        if one.whole:
            lines += ["", f"## Study {one.study}", "", f"{again(one).capitalize()}, with {counted(len(one.removed), 'adapter')}."]
            lines += _removed(one)
            continue
        lines += [
            "",
            f"## Study {one.study}",
            "",
            f"{counted(one.n_dialogues, 'dialogue')} and {counted(one.n_answers, 'answer')} of the person were removed, with everybody's "
            "answers, scores and results, which may repeat what the person said.",
            "",
            f"Data digest: `{one.data_digest}` before, `{one.data_digest_after}` after. Champion: {one.champion or 'none'} before, "
            f"{one.champion_after or 'none'} after. Adapters that never learned from the person, and were kept: {len(one.kept)}.",
            *_removed(one),
            *_table("Trained without the person", one.retrained),
        ]
        if not one.ended:
            lines += ["", "The study had compared nothing yet; it goes on without the person when it is run."]
    if certificate.backups:
        lines += ["", "## Backups", "", *(f"- {file} was removed" for file in certificate.backups)]
    lines += ["", "## Out of reach", "", *(f"- {sentence}" for sentence in certificate.left), ""]
    return "\n".join(lines)


def _removed(one: Removal) -> list[str]:
    unlinked = [adapter for adapter in one.removed if adapter.still_in]
    lines = _table("Removed", [adapter for adapter in one.removed if not adapter.still_in])
    return lines + (_table("Taken from this study; other studies have the same weights", unlinked) if unlinked else [])


def _table(title: str, adapters: Sequence[AdapterRecord]) -> list[str]:
    if not adapters:
        return ["", f"{title}: no adapter."]
    rows = [f"| {one.name} | {one.n_personas} | `{one.key}` | `{one.weights_sha256 or 'unknown'}` |" for one in adapters]
    return ["", f"| {title} | people | key | SHA-256 of the weights |", "|---|---:|---|---|", *rows]
