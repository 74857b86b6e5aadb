"""Train LoRA adapters at every granularity and compare them honestly."""

__version__ = "0.1.0"
