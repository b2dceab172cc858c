"""Kills what hangs, as an event listener of supervisord, which calls us every five seconds.

A process that was stopped (SIGSTOP) or whose loop is stuck does not exit by itself and does not hear
SIGTERM; so it gets SIGKILL after three deadlines missed in a row, and supervisord starts it again. What a
part says about its dependencies does not count here.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from supervisor import childutils

from local_mesh import parts
from local_mesh.places import Places
from local_mesh.settings import MeshSettings
from local_mesh.supervision import Supervisor

DEADLINE_SECONDS = 2.0
MISSES = 3
"""In a row, one every five seconds: a process busy with garbage collection or a slow disk is not hung."""
START_SECONDS = 180
"""What a start may take before silence counts; a part that has answered once is held to it at once.

Longer than `make up` waits: on a very busy machine a kill would only begin the work anew."""


class Watch:
    """Counts missed deadlines of each process."""

    def __init__(self) -> None:
        self._misses: dict[int, int] = {}
        self._answered: set[int] = set()

    def saw(self, pid: int, up_seconds: float, answered: bool) -> bool:
        """One more reading of a process; True when it is to be killed."""
        if answered:
            self._answered.add(pid)
            self._misses[pid] = 0
            return False
        if pid not in self._answered and up_seconds < START_SECONDS:
            return False
        self._misses[pid] = self._misses.get(pid, 0) + 1
        return self._misses[pid] >= MISSES

    def forget_all_but(self, pids: set[int]) -> None:
        """Drops the counts of processes that no longer run: the machine gives a pid out again."""
        self._answered &= pids
        self._misses = {pid: count for pid, count in self._misses.items() if pid in pids}


def main() -> None:
    """Answers supervisord's events on stdin and stdout for ever; argv[1] is the state folder of the mesh."""
    places = Places(Path(sys.argv[1]))
    settings = MeshSettings.from_json(places.running.read_text())
    watch = Watch()
    with ThreadPoolExecutor(len(parts.names(settings))) as pool:
        while True:
            childutils.listener.wait(sys.stdin, sys.stdout)
            supervisor = Supervisor(places.socket)
            try:
                seen = [part for part in supervisor.parts().values() if part.state == "RUNNING"]
            finally:
                supervisor.close()
            watch.forget_all_but({part.pid for part in seen})
            answers = pool.map(
                lambda name: parts.is_well(settings, name, "live", DEADLINE_SECONDS),
                [part.name for part in seen],
            )
            for part, answered in zip(seen, answers, strict=True):
                if watch.saw(part.pid, part.up_seconds, answered):
                    print(f"{part.name} (pid {part.pid}) hangs: killed", file=sys.stderr, flush=True)
                    _kill(part.pid)
            childutils.listener.ok(sys.stdout)


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
