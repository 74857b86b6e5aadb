"""Prefect's server on SQLite: transactions that write wait for each other instead of failing with "database is locked"."""

from contextlib import AbstractAsyncContextManager
from typing import Any


def queue_writers() -> None:
    """Make every transaction of this process's Prefect server take SQLite's write lock when it begins; PostgreSQL is not concerned.

    Prefect begins them deferred. One that has read and then writes, as a worker's heartbeat does, then fails at once if another has
    committed in between: its view of the database is outdated, and waiting (`busy_timeout`, 60 s) cannot mend that. Pages show "Oops" for
    such a failure. A transaction that begins as a writer waits its turn. Source: https://www.sqlite.org/lang_transaction.html, section 2.1.
    """
    from prefect.server.database.configurations import AioSqliteConfiguration

    begin = AioSqliteConfiguration.begin_transaction

    def begin_as_writer(
        configuration: AioSqliteConfiguration,
        session: Any,
        with_for_update: bool = False,  # noqa: ARG001  (Prefect's signature)
    ) -> AbstractAsyncContextManager[Any]:
        return begin(configuration, session, with_for_update=True)

    AioSqliteConfiguration.begin_transaction = begin_as_writer  # pyrefly: ignore[bad-assignment]
