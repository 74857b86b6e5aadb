"""Who left is left out whenever data are read: the file may still have them."""

from collections.abc import Callable

from clusterlora.errors import UnknownName
from clusterlora.metadata import Forgotten
from clusterlora.ports.stores import Stores
from clusterlora.pseudonyms import pseudonym
from clusterlora.settings import Study
from clusterlora.stores.departures import DEPARTED

CERTIFICATES = ".forgotten"
"""In the folder of the results: two files per certificate, named by the first digits of the keyed digest of the id and the moment."""
UNFINISHED = ".forgetting"
"""The same while it is under way: what a command that was killed had set out to remove."""
DIGITS = 32


def who_left(study: Study, stores: Stores) -> Callable[[str], bool]:
    """Return whether a person whom the data of a study have was forgotten by any study here, and so is left out.

    Whom the study has already, or what it refreshes, stays: they were forgotten elsewhere (`--study`) alone. The result raises BadSettings
    where people have left, and the key by which they are told is not here.
    """
    names = [name for name, *_ in stores.studies.studies()]
    left = {one[:DIGITS] for name in names for one in (stores.studies.metadata(name, Forgotten) or Forgotten()).pseudonyms}
    # A study of exchanged dialogues is removed with its metadata.
    left |= {one.stem[:DIGITS] for folder in (CERTIFICATES, UNFINISHED, DEPARTED) for one in (stores.home / folder).glob("*.json")}
    if not left:
        return lambda _: False
    has = {one for name in (study.name, study.refresh.of) if name in names for one in _ids(str(name), stores)}
    return lambda persona_id: persona_id not in has and pseudonym(stores.home, persona_id)[:DIGITS] in left


def _ids(study: str, stores: Stores) -> tuple[str, ...]:
    try:
        return stores.studies.dataset(study).ids
    except UnknownName:
        return ()
