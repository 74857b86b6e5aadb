"""Answering with what a study has chosen: in process, or behind MLflow."""

MOST_RESIDENT = 256
"""Compositions of adapters in memory at once, unless another number is given."""
