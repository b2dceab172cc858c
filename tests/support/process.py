"""A process that a test starts, stops and kills, and what it wrote."""

from __future__ import annotations

import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
STOP_SECONDS = 20


class NotHealthy(AssertionError):
    """A process did not do what was asked; the message ends with its log."""


class Process:
    """One that may be started again. It writes to `log`, which grows."""

    def __init__(self, name: str, log: Path) -> None:
        self.name = name
        self.log = log
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self.name} does not run"
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def run(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        """Starts it, without waiting for anything. It should end with the tests: see setpriv --pdeathsig."""
        assert not self.running, f"{self.name} runs already"
        # It would die with the thread that started it (pdeathsig), and a pool's thread dies with its loop.
        assert threading.current_thread() is threading.main_thread()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                env=environment,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def stop(self) -> None:
        """Ask it to end (SIGTERM), and wait until it has."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """kill -9."""
        self._end(signal.SIGKILL)

    def last_words(self, lines: int = 60) -> str:
        """The end of its log."""
        said = self.log.read_text(errors="replace").splitlines()[-lines:] if self.log.exists() else []
        return f"The end of the log of {self.name} ({self.log}):\n" + "\n".join(said)

    def _end(self, how: signal.Signals) -> None:
        if self._process is None:
            return
        process, self._process = self._process, None
        if process.poll() is None:
            process.send_signal(how)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise NotHealthy(f"{self.name} did not end at {how.name}.\n{self.last_words()}") from None
