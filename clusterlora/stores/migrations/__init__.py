"""Alembic migrations of the study database, run by `clusterlora.stores.database` when a database is opened."""
