"""How an engine will run the statements of a query."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import event

from dinemesh.kit.store import Store, Transaction

# A table of a test fits into a page, so PostgreSQL would read all of it, and sort, whatever the index.
_NOT_IF_LARGE = "enable_seqscan", "enable_bitmapscan", "enable_sort"
_EXPLAIN = {"sqlite": "EXPLAIN QUERY PLAN ", "postgresql": "EXPLAIN (COSTS OFF) "}


async def plans(store: Store, query: Callable[[Transaction], object]) -> list[str]:
    """The plan of each statement that the query runs, one string with a line for each step."""
    return await store.read(lambda tx: _plans(tx, query))


def _plans(tx: Transaction, query: Callable[[Transaction], object]) -> list[str]:
    connection = tx._connection
    run: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if statement.startswith("SELECT"):  # and not the engine's own BEGIN
            run.append((statement, parameters))

    event.listen(connection, "before_cursor_execute", note)
    query(tx)
    event.remove(connection, "before_cursor_execute", note)
    if tx.dialect == "postgresql":
        for setting in _NOT_IF_LARGE:
            connection.exec_driver_sql(f"SET LOCAL {setting} = off")
    told = [connection.exec_driver_sql(_EXPLAIN[tx.dialect] + sql, parameters) for sql, parameters in run]
    return ["\n".join(str(row[-1]) for row in result) for result in told]


def enters(plan: str, table: str, index: str, place: str) -> bool:
    """Whether the plan reads the table by the index alone, from a place such as "(time,id)>" on."""
    spelt_alike = plan.replace(" ", "").replace('"', "").replace("ROW(", "(")
    reads_all = f"SCAN {table}" in plan or "Seq Scan" in plan
    return index in plan and place in spelt_alike and not reads_all
