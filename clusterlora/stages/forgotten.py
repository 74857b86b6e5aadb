"""Who left a study is left out whenever its data are read: the file may still have them."""

from clusterlora.metadata import Forgotten
from clusterlora.planning.family import family
from clusterlora.ports.stores import Stores
from clusterlora.pseudonyms import pseudonym
from clusterlora.settings import PreparedStudy
from clusterlora.values import Dataset


def without_forgotten(dataset: Dataset, study: PreparedStudy, stores: Stores) -> Dataset:
    """Return data that were read for a study without the people who left it or, where it is a refresh, any study of its family.

    Raises:
        BadSettings: people have left, and the key by which they are told is not here.
    """
    root = study.refresh.root or study.name
    if all(name != root for name, *_ in stores.studies.studies()):
        return dataset
    left = {one for name in family(root, stores) for one in (stores.studies.metadata(name, Forgotten) or Forgotten()).pseudonyms}
    if not left:
        return dataset
    return Dataset(tuple(p for p in dataset.personas if pseudonym(stores.home, p.id) not in left))
