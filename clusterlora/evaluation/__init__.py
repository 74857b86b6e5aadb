"""Answering items with many adapters in one batch, and scoring the answers."""
