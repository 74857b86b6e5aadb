"""Prefect tasks: each is one call of the core with retries, a run name, progress and artifacts. Decisions are made in the core."""
