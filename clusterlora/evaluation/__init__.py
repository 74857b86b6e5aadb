"""Answering every item under one protocol, and scoring the answers."""
