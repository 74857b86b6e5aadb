"""On SQLite, Prefect's transactions wait for each other: one that has read and then writes is not refused because another wrote."""

import asyncio
import sqlite3
from pathlib import Path

import pytest
import sqlalchemy as sa
from prefect.server.database.configurations import AioSqliteConfiguration
from sqlalchemy.exc import OperationalError

from deployments.prefect_sqlite import queue_writers


async def count_twice(file: Path) -> int:
    """Return a counter after two transactions have each read it and written one more; the second begins while the first is open."""
    with sqlite3.connect(file) as connection:
        connection.execute("create table counter (n integer)")
        connection.execute("insert into counter values (0)")
    configuration = AioSqliteConfiguration(f"sqlite+aiosqlite:///{file}")
    engine = await configuration.engine()
    first_has_read, second_is_on = asyncio.Event(), asyncio.Event()

    async def add_one(*, is_first: bool) -> None:
        async with await configuration.session(engine) as session, configuration.begin_transaction(session):
            n = (await session.execute(sa.text("select n from counter"))).scalar_one()
            if is_first:
                first_has_read.set()
                await second_is_on.wait()
            await session.execute(sa.text(f"update counter set n = {n + 1}"))

    async def second() -> None:
        await first_has_read.wait()
        adding = asyncio.create_task(add_one(is_first=False))
        # It is done, or waits for the first: until one of both is the case.
        await asyncio.wait({adding}, timeout=0.5)
        second_is_on.set()
        await adding

    try:
        await asyncio.gather(add_one(is_first=True), second())
        async with await configuration.session(engine) as session:
            return (await session.execute(sa.text("select n from counter"))).scalar_one()
    finally:
        await engine.dispose()


def test_a_transaction_that_reads_and_then_writes_is_refused_as_prefect_begins_it(tmp_path: Path) -> None:
    with pytest.raises(OperationalError, match="database is locked"):
        asyncio.run(count_twice(tmp_path / "prefect.db"))


def test_transactions_that_begin_as_writers_wait_and_both_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AioSqliteConfiguration, "begin_transaction", AioSqliteConfiguration.begin_transaction)
    queue_writers()
    assert asyncio.run(count_twice(tmp_path / "prefect.db")) == 2
