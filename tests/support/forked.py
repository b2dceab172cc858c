"""Processes of services that a server forks which has imported them already."""

from __future__ import annotations

import atexit
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from dinemesh.kit import crash
from tests.support.process import ROOT

POLL_SECONDS = 0.01


class ForkServer:
    """The process that forks. Every service that it started ends with it."""

    def __init__(self, log: Path) -> None:
        self._lock = threading.Lock()
        # The kernel ends it with the thread that started it.
        assert threading.current_thread() is threading.main_thread()
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "--", sys.executable, "-m", "tests.support.fork_server"],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,
            )
        assert self._hear() == "ready", f"the fork server does not start: {log}"

    def launch(self, module: str, environment: dict[str, str], log: Path) -> Forked:
        """As tests.support.mesh.launch."""
        return self._fork(module, environment, log, hurried=False)

    def launch_hurried(self, module: str, environment: dict[str, str], log: Path) -> Forked:
        """The same with leases and meals that are over soon, for tests that wait for hundreds of them."""
        return self._fork(module, environment, log, hurried=True)

    def launch_with_points(self, module: str, environment: dict[str, str], log: Path) -> Forked:
        """The same; the points that it passes are in the folder `points_of(log)`."""
        return self.launch_hurried(module, with_points(environment, log), log)

    def _fork(self, module: str, environment: dict[str, str], log: Path, *, hurried: bool) -> Forked:
        asked = {"module": module, "environment": environment, "log": str(log), "hurried": hurried}
        return Forked(self, self.ask(asked))

    def ask(self, question: dict[str, Any]) -> Any:
        with self._lock:
            assert self._process.stdin is not None
            self._process.stdin.write(f"{json.dumps(question)}\n")
            self._process.stdin.flush()
            return self._hear()

    def close(self) -> None:
        self._process.communicate(timeout=10)

    def _hear(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the fork server is gone"
        return json.loads(line)


@functools.cache
def forks() -> ForkServer:
    """The one of this process of tests, and it ends with it."""
    folder = tempfile.mkdtemp(prefix="dinemesh-forks-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return ForkServer(Path(folder) / "forks.log")


class Forked:
    """One process, by the names that subprocess.Popen has for it."""

    def __init__(self, server: ForkServer, pid: int) -> None:
        self.pid = pid
        self._server = server
        self._code: int | None = None

    def poll(self) -> int | None:
        if self._code is None:
            self._code = self._server.ask({"poll": self.pid})
        return self._code

    def wait(self, timeout: float | None = None) -> int:
        end = time.monotonic() + (timeout if timeout is not None else 3600)
        while (code := self.poll()) is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
            time.sleep(POLL_SECONDS)
        return code

    def send_signal(self, sig: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, sig)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def with_points(environment: dict[str, str], log: Path) -> dict[str, str]:
    """An environment in which points are points."""
    points = points_of(log)
    points.mkdir(exist_ok=True)
    return environment | {crash.VARIABLE: str(points)}


def points_of(log: Path) -> Path:
    """The folder of the points of the process that writes this log."""
    return log.with_suffix(".points")
