"""Alembic's entry: migrates over the connection that the caller opened and commits."""

from alembic import context

from clusterlora.stores.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, render_as_batch=True)
context.run_migrations()
