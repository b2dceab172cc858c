"""The schema follows the migrations of a package, on both engines, also when two pods start at once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import create_engine, inspect

from dinemesh.kit import migrate
from tests.support.database_faults import name_of
from tests.support.mesh import ROOT
from tests.support.postgres import FreshDatabase, PostgresServer

ENV = """
from sqlalchemy import MetaData
from dinemesh.kit.migrate import run_env
run_env(MetaData())
"""
FIRST = """
import sqlalchemy as sa
from alembic import op
revision, down_revision = "0001", None
def upgrade():
    op.create_table("guests", sa.Column("id", sa.Integer, primary_key=True))
"""
SECOND = """
import sqlalchemy as sa
from alembic import op
revision, down_revision = "0002", "0001"
def upgrade():
    with op.batch_alter_table("guests") as table:
        table.add_column(sa.Column("name", sa.Text))
        table.create_check_constraint("named", "name <> ''")
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "guests_svc"
    versions = folder / "migrations" / "versions"
    versions.mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / "migrations" / "__init__.py").touch()
    (folder / "migrations" / "env.py").write_text(ENV)
    (versions / "0001_first.py").write_text(FIRST)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "guests_svc", raising=False)
    monkeypatch.delitem(sys.modules, "guests_svc.migrations", raising=False)
    return folder


def columns(url: str) -> set[str]:
    engine = create_engine(url)
    try:
        return {column["name"] for column in inspect(engine).get_columns("guests")}
    finally:
        engine.dispose()


def test_a_database_is_brought_up_to_date_step_by_step(package: Path, fresh_database: FreshDatabase) -> None:
    url = fresh_database("")
    assert not migrate.is_current(url, "guests_svc")
    migrate.upgrade(url, "guests_svc")
    assert migrate.is_current(url, "guests_svc")
    migrate.upgrade(url, "guests_svc")
    assert columns(url) == {"id"}
    (package / "migrations" / "versions" / "0002_second.py").write_text(SECOND)
    assert not migrate.is_current(url, "guests_svc")
    migrate.upgrade(url, "guests_svc")
    assert columns(url) == {"id", "name"}


def test_the_version_before_goes_on_with_a_newer_schema(package: Path, fresh_database: FreshDatabase) -> None:
    url = fresh_database("")
    second = package / "migrations" / "versions" / "0002_second.py"
    second.write_text(SECOND)
    migrate.upgrade(url, "guests_svc")
    second.unlink()  # rolled back: the code, not the schema
    assert migrate.is_current(url, "guests_svc")
    migrate.upgrade(url, "guests_svc")
    assert columns(url) == {"id", "name"}
    second.write_text(SECOND)
    assert migrate.is_current(url, "guests_svc")


def test_pods_that_start_at_once_do_not_disturb_each_other(package: Path, postgres: PostgresServer) -> None:
    # Slow, so that every pod arrives while the first one is at work: without the lock they fail.
    slow = FIRST.replace("def upgrade():", "def upgrade():\n    op.execute('SELECT pg_sleep(2)')")
    (package / "migrations" / "versions" / "0001_first.py").write_text(slow)
    url = postgres.fresh("")
    start = f"from dinemesh.kit import migrate; migrate.upgrade({url!r}, 'guests_svc')"
    path = os.pathsep.join((str(package.parent), str(ROOT)))
    pods = [
        subprocess.Popen([sys.executable, "-c", start], env=os.environ | {"PYTHONPATH": path})
        for _ in range(3)
    ]
    assert [pod.wait(60) for pod in pods] == [0, 0, 0]
    assert columns(url) == {"id"}


def test_a_migration_takes_the_time_that_it_takes(package: Path, postgres: PostgresServer) -> None:
    """Whatever timeouts the database has for changes."""
    slow = FIRST.replace("def upgrade():", "def upgrade():\n    op.execute('SELECT pg_sleep(1.5)')")
    (package / "migrations" / "versions" / "0001_first.py").write_text(slow)
    url = postgres.fresh("")
    postgres.execute(f"ALTER DATABASE {name_of(url)} SET statement_timeout = '1s'")
    migrate.upgrade(url, "guests_svc")
    assert columns(url) == {"id"}
