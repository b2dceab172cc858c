"""A mesh whose calendar shows another day, for tests whose outcome depends on it.

`python -m tests.support.clock SECONDS MODULE` is like `python -m MODULE`, with the one clock of a service,
its embedded database's, so much ahead (or, below zero, behind). With the name of a file in place of SECONDS
it is always so much ahead as the file then says. Tokens and deadlines stay with the machine's clock. The
product has no such switch.
"""

from __future__ import annotations

import datetime as dt
import os
import runpy
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dinemesh.kit import engines
from tests.support.process import Child, spawn

VARIABLE = "CLOCK_FILE"
"""In the environment of a process that tests.support.fork_server forks: the file that its clock follows."""


@dataclass(frozen=True)
class Calendar:
    """What a mesh takes for now: the machine's clock, `ahead` of itself."""

    ahead: dt.timedelta = dt.timedelta()

    @classmethod
    def at(cls, moment: dt.datetime) -> Calendar:
        """On which it is this moment now."""
        return cls(moment - dt.datetime.now(dt.UTC))

    def now(self) -> dt.datetime:
        return dt.datetime.now(dt.UTC) + self.ahead

    def soon(self, seconds: float) -> dt.datetime:
        """A whole second not less than so many seconds from now."""
        return (self.now() + dt.timedelta(seconds=seconds + 1)).replace(microsecond=0)

    def launch(self, module: str, environment: dict[str, str], log: Path) -> Child:
        """As tests.support.mesh.launch, on this calendar."""
        ahead = str(self.ahead.total_seconds())
        command = [sys.executable, "-m", "tests.support.clock", ahead, module]
        return spawn(["setpriv", "--pdeathsig", "KILL", "--", *command], environment, log)


def set_ahead(ahead: dt.timedelta) -> None:
    """In this process. Raises where the clock is not read any more as it was."""
    _replace(lambda: ahead)


def follow(file: Path) -> None:
    """As `set_ahead`, always by so much as `write_ahead` last wrote to the file; by nothing without one."""

    def ahead() -> dt.timedelta:
        try:
            return dt.timedelta(seconds=float(file.read_text()))
        except FileNotFoundError:
            return dt.timedelta()

    _replace(ahead)


def write_ahead(file: Path, ahead: dt.timedelta) -> None:
    """For those who follow the file: at once, in one piece."""
    new = file.with_name(f"{file.name}.new")
    new.write_text(str(ahead.total_seconds()))
    os.replace(new, file)


def _replace(ahead: Callable[[], dt.timedelta]) -> None:
    class Shifted(dt.datetime):
        @classmethod
        def now(cls, tz: dt.tzinfo | None = None) -> Shifted:
            return super().now(tz) + ahead()

    names = vars(engines)
    if names.get("datetime") is not dt.datetime:
        raise RuntimeError(f"{engines.__name__} has no clock any more that could be set ahead")
    names["datetime"] = Shifted


def main() -> None:
    try:
        set_ahead(dt.timedelta(seconds=float(sys.argv[1])))
    except ValueError:
        follow(Path(sys.argv[1]))
    sys.argv = sys.argv[2:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
