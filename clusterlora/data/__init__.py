"""Dialogues: where they come from, how they are checked and split. One source per file; each reads what its settings name."""

from clusterlora.catalog import Catalog
from clusterlora.data.edgewise import read_edgewise
from clusterlora.data.reading import Source
from clusterlora.data.synthetic import read_synthetic
from clusterlora.data.table import read_table

SOURCES: Catalog[Source] = Catalog(
    "data source",
    {
        "synthetic": read_synthetic,
        "edgewise": read_edgewise,
        "table": read_table,
    },
)
