"""What a guest writes and what a card is stays out of the log, also when a statement fails."""

from __future__ import annotations

import io
import logging

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from dinemesh.kit import log
from dinemesh.kit.store import Store, Transaction
from tests.support.postgres import FreshDatabase

SECRET = "tok_visa of a guest"


async def test_a_failed_statement_does_not_tell_what_was_in_it(fresh_database: FreshDatabase) -> None:
    store = Store.open(fresh_database(""))

    def unknown_table(tx: Transaction) -> None:
        tx.execute(text("INSERT INTO nowhere VALUES (:token)"), {"token": SECRET})

    def broken_rule(tx: Transaction) -> None:
        tx.execute(text("CREATE TABLE guests (note TEXT, seats INTEGER CHECK (seats > 0))"))
        tx.execute(text("INSERT INTO guests VALUES (:note, 0)"), {"note": SECRET})

    logged = io.StringIO()
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    log.setup("test", stream=logged)
    try:
        for change, word in ((unknown_table, "nowhere"), (broken_rule, "guests")):
            with pytest.raises(DBAPIError, match=word) as failed:
                await store.write(change)
            root.error("failed: %r", failed.value, exc_info=failed.value)
            assert word in logged.getvalue()
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        await store.close()
    assert SECRET not in logged.getvalue()
