"""Sources of dialogues, their checks and their splits. One source per file."""

from clusterlora.catalog import Catalog
from clusterlora.data.edgewise import read_edgewise
from clusterlora.data.lamp import read_lamp
from clusterlora.data.source import Source
from clusterlora.data.synthetic import read_synthetic
from clusterlora.data.table import read_table

SOURCES: Catalog[Source] = Catalog(
    "data source",
    {
        "synthetic": read_synthetic,
        "edgewise": read_edgewise,
        "table": read_table,
        "lamp": read_lamp,
    },
)
