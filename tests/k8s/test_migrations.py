"""The command of the migration Jobs."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dinemesh.kit import migrate
from tests.k8s.rendered import Cluster, objects
from tests.support.ports import free_ports
from tests.support.postgres import PostgresServer

JOBS = {one.name: one.containers[0]["args"] for one in Cluster(objects("migrations")).workloads}


def run(url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-O", "-m", *arguments],
        env={**os.environ, "DINEMESH_DATABASE_URL": url},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_each_job_brings_the_schema_of_its_service_up_to_date(postgres: PostgresServer) -> None:
    urls = {job: postgres.fresh("") for job in JOBS}
    assert not any(migrate.is_current(urls[job], package) for job, (_, package) in JOBS.items())
    with ThreadPoolExecutor(len(JOBS)) as pool:
        done = dict(zip(JOBS, pool.map(lambda job: run(urls[job], *JOBS[job]), JOBS), strict=True))
    for job, (_, package) in JOBS.items():
        said = (done[job].returncode, done[job].stdout)
        assert said == (0, f"{package}: the schema is up to date\n"), done[job].stderr
        assert migrate.is_current(urls[job], package)


def test_a_second_time_changes_nothing(tmp_path: Path) -> None:
    module, package = JOBS["deposit-migrations"]
    database = tmp_path / "deposit.sqlite"
    assert run(f"sqlite:///{database}", module, package).returncode == 0
    before = database.read_bytes()
    assert run(f"sqlite:///{database}", module, package).returncode == 0
    assert database.read_bytes() == before


def test_a_job_fails_and_says_why_without_the_password_where_the_database_is_away() -> None:
    module, package = next(iter(JOBS.values()))
    (port,) = free_ports(1)
    done = run(f"postgresql+psycopg://deposit:hidden@127.0.0.1:{port}/deposit", module, package)
    assert done.returncode == 1
    assert "refused" in done.stderr and "hidden" not in done.stderr and "Traceback" not in done.stderr


def test_without_a_package_it_says_how_it_is_used() -> None:
    assert "usage" in run("sqlite:///x", "dinemesh.kit.migrate").stderr
