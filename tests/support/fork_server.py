"""`python -m tests.support.fork_server` has imported all services, and forks one whenever it is told to.

A start of a service is mostly imports, and the tests need hundreds of starts. It forks before any thread or
object of grpc exists; the child goes on as `python -m <module>` would.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import runpy
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

from tests.support import clock

_PR_SET_PDEATHSIG = 1
# What the services import late: at their first migration, connection or call.
_LATE = ("psycopg", "alembic.command", "alembic.autogenerate", "sqlalchemy.dialects.postgresql.psycopg")
MODULES = ("reservation_svc.main", "deposit_svc.main", "restaurant_svc.main", "history_svc.main")


def main() -> None:
    """Answers each line of JSON on standard input by one on standard output, until there are no more."""
    for module in (*MODULES, "deposit_svc.sandbox.__main__", *_LATE):
        importlib.import_module(module)
    gc.collect()
    gc.freeze()
    _answer("ready")
    for line in sys.stdin:
        asked = json.loads(line)
        if "module" in asked:
            pid = os.fork()
            if pid == 0:
                _become(asked)
                return
            _answer(pid)
        else:
            found, status = os.waitpid(asked["poll"], os.WNOHANG)
            _answer(os.waitstatus_to_exitcode(status) if found else None)


def _become(asked: dict[str, Any]) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    os.setsid()
    log = os.open(asked["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.environ.clear()
    os.environ.update(asked["environment"])
    sys.argv = [asked["module"]]
    if asked["hurried"]:
        if os.environ["DINEMESH_DATABASE_URL"].startswith("postgresql"):
            _shorten_leases()
        _shorten_meals()
    if file := os.environ.get(clock.VARIABLE):
        clock.follow(Path(file))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # "found in sys.modules": that is the idea
        runpy.run_module(asked["module"], run_name="__main__", alter_sys=True)


def _shorten_leases() -> None:
    """What a dead relay has claimed waits for the end of the lease, where it may be another pod's: 30 s,
    hundreds of times."""
    from dinemesh.kit.relay import Relay

    defaults = Relay.__init__.__kwdefaults__ or {}
    assert "lease_seconds" in defaults
    defaults["lease_seconds"] = 2.0


def _shorten_meals() -> None:
    """What nobody marks is completed some time after the meal, and no restaurant has meals below a minute."""
    from restaurant_svc import domain

    _, longest = domain._POLICY_BOUNDS["service_duration_seconds"]
    domain._POLICY_BOUNDS["service_duration_seconds"] = (1, longest)


def _answer(value: object) -> None:
    sys.stdout.write(f"{json.dumps(value)}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
