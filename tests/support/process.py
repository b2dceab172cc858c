"""A process that a test starts, stops and kills, and what it wrote."""

from __future__ import annotations

import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

ROOT = Path(__file__).resolve().parents[2]
STOP_SECONDS = 20


class NotHealthy(AssertionError):
    """A process did not do what was asked; the message ends with its log."""


class Child(Protocol):
    """What is needed of a child process: what subprocess.Popen has."""

    @property
    def pid(self) -> int: ...
    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def send_signal(self, sig: int) -> None: ...
    def kill(self) -> None: ...


def spawn(command: Sequence[str], environment: Mapping[str, str] | None, log: Path) -> Child:
    """Starts a child that writes to the end of `log`; it should end with the tests: setpriv --pdeathsig."""
    # It would die with the thread that started it (pdeathsig), and a pool's thread dies with its loop.
    assert threading.current_thread() is threading.main_thread()
    with log.open("ab") as out:
        return subprocess.Popen(
            command,
            env=environment,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


class Process:
    """One that may be started again. It writes to `log`, which grows."""

    def __init__(self, name: str, log: Path) -> None:
        self.name = name
        self.log = log
        self._process: Child | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self.name} does not run"
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        """Of the process that was started last, once it has ended by itself."""
        return None if self._process is None else self._process.poll()

    @property
    def died(self) -> bool:
        """Whether it was started and has ended by itself: nobody stopped or killed it."""
        return self.exit_code is not None

    def run(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        """Starts it, without waiting for anything."""
        self.follow(lambda: spawn(command, environment, self.log))

    def follow(self, start: Callable[[], Child]) -> None:
        """Starts it in a way of the caller's own."""
        assert not self.running, f"{self.name} runs already"
        self._process = start()

    def stop(self) -> None:
        """Ask it to end (SIGTERM), and wait until it has."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """kill -9."""
        self._end(signal.SIGKILL)

    def tell(self, signal_: signal.Signals) -> None:
        """Sends a signal, and waits for nothing."""
        if self._process is not None:
            self._process.send_signal(signal_)

    def wait_for_exit(self, seconds: float = STOP_SECONDS) -> int:
        """The exit code of a process that ends by itself; negative if a signal ended it."""
        assert self._process is not None, f"{self.name} was never started"
        return self._process.wait(seconds)

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
