"""A mesh whose calendar shows another day, for tests whose outcome depends on it.

`python -m tests.support.clock SECONDS MODULE` is like `python -m MODULE`, with the one clock of a service,
its embedded database's, so much ahead (or, below zero, behind). Tokens and deadlines stay with the machine's
clock. The product has no such switch.
"""

from __future__ import annotations

import datetime as dt
import runpy
import sys
from dataclasses import dataclass
from pathlib import Path

from dinemesh.kit import engines
from tests.support.process import Child, spawn


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

    class Shifted(dt.datetime):
        @classmethod
        def now(cls, tz: dt.tzinfo | None = None) -> Shifted:
            return super().now(tz) + ahead

    names = vars(engines)
    if names.get("datetime") is not dt.datetime:
        raise RuntimeError(f"{engines.__name__} has no clock any more that could be set ahead")
    names["datetime"] = Shifted


def main() -> None:
    set_ahead(dt.timedelta(seconds=float(sys.argv[1])))
    sys.argv = sys.argv[2:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
