"""A mesh as `make up DEPOSIT_DATABASE_URL=postgresql+psycopg://...` starts it: two kinds of database."""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from local_mesh import machine, tokens
from local_mesh.broker import RunningBroker
from tests.local_mesh.running import LocalMesh, free_table
from tests.support.postgres import PostgresServer
from tests.support.process import ROOT

OUR_ID = re.compile(r"^our id +(order-\S+)$", re.MULTILINE)


@pytest.fixture(scope="module")
def mesh(
    tmp_path_factory: pytest.TempPathFactory, broker: RunningBroker, postgres: PostgresServer
) -> Iterator[LocalMesh]:
    """Deposit's database is empty: `make up` brings its schema too."""
    whole = LocalMesh(
        tmp_path_factory.mktemp("two-engines") / "state",
        AMQP_URL=broker.fresh_url(),
        DEPOSIT_DATABASE_URL=postgres.fresh(""),
    )
    try:
        whole.up()
        yield whole
    finally:
        whole.down()
    assert machine.processes_of(whole.settings.state_dir) == []


@pytest.fixture(scope="module")
def followed(mesh: LocalMesh) -> str:
    """What examples/correlation.py says of a booking, as a person runs it."""
    free_table(mesh)  # reservation has heard of the restaurants
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "examples.correlation",
            f"--edge={mesh.settings.address('edge')}",
            f"--logs={mesh.places.logs}",
        ],
        env={**os.environ, "TOKEN": tokens.person(mesh.places, "alice", "customer")},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_booking_stands_in_both_kinds_of_database(mesh: LocalMesh, followed: str) -> None:
    assert OUR_ID.search(followed)
    engine = sa.create_engine(mesh.given["DEPOSIT_DATABASE_URL"])
    with engine.connect() as in_postgresql:
        paid = in_postgresql.execute(sa.text("SELECT reservation_id FROM deposits")).scalars().all()
    engine.dispose()
    with sqlite3.connect(mesh.places.data / "reservation.sqlite") as in_sqlite:
        booked = [one for (one,) in in_sqlite.execute("SELECT reservation_id FROM reservations")]
    assert [str(one) for one in paid] == booked and len(booked) == 1
    assert not (mesh.places.data / "deposit.sqlite").exists()
    audit = mesh.run("audit")
    assert audit.returncode == 0, audit.stdout + audit.stderr


def test_one_id_is_followed_from_the_answer_through_all_logs_into_every_event(followed: str) -> None:
    found = OUR_ID.search(followed)
    assert found is not None
    assert f"in the answer      {found[1]}\n" in followed
    for part, said in (
        ("edge", "access POST /v1/reservations"),
        ("reservation", "call .*CreateReservation"),
        ("deposit", "call .*CreateDeposit"),
        ("sandbox", "call .*CreateCharge"),
    ):
        assert re.search(rf"^log of {part} +{said}$", followed, re.MULTILINE), f"{part}\n{followed}"
    for kind in ("RESERVATION_PLACED", "RESERVATION_CONFIRMED", "DEPOSIT_CAPTURED"):
        assert f"event              {found[1]}  TIMELINE_ENTRY_KIND_{kind}\n" in followed
    assert set(re.findall(r"^event +(\S+)", followed, re.MULTILINE)) == {found[1]}
