"""What the machine says about ports and processes (Linux, by /proc)."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MARK = "LOCAL_MESH_HOME"
"""In the environment of every process of a mesh: the folder of its state. Children inherit it, so nothing
that a part started is overlooked."""

_LISTEN = "0A"


@dataclass(frozen=True)
class Process:
    """A process as it was seen; `command` is its whole command line, empty if it ended meanwhile."""

    pid: int
    command: str

    def __str__(self) -> str:
        return f"pid {self.pid} ({self.command[:100]})"


def is_free(port: int) -> bool:
    """Whether a server could listen on 127.0.0.1:`port` now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def holder(port: int) -> Process | None:
    """Who listens on a port, as far as we may see: other users' processes keep it to themselves."""
    sockets = set(_listening_sockets(port))
    for pid in _pids():
        try:
            for descriptor in Path(f"/proc/{pid}/fd").iterdir():
                if os.readlink(descriptor) in sockets:
                    return Process(pid, command_of(pid))
        except OSError:
            continue
    return None


def processes_of(state: Path) -> list[Process]:
    """Every living process that belongs to the mesh with this state."""
    mark = f"{MARK}={state}".encode()
    found = []
    for pid in _pids():
        try:
            if mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                found.append(Process(pid, command_of(pid)))
        except OSError:
            continue
    return found


def end_processes_of(state: Path, seconds: float = 5) -> list[Process]:
    """kill -9 what is left of a mesh; returns what was there."""
    ended = processes_of(state)
    for process in ended:
        _kill(process.pid)
    end = time.monotonic() + seconds
    while processes_of(state) and time.monotonic() < end:
        time.sleep(0.05)
    return ended


def command_of(pid: int) -> str:
    """Returns the command line with spaces between its words, or an empty string if it cannot be read."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def memory_megabytes(pid: int) -> int:
    """What a process and its children hold in RAM; 0 if it is gone."""
    pages = sum(_resident_pages(one) for one in [pid, *children_of(pid)])
    return pages * os.sysconf("SC_PAGE_SIZE") // 1_000_000


def _resident_pages(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return 0


def children_of(pid: int) -> list[int]:
    """Returns the pids of the direct children alone, and none if the process is gone."""
    found: list[int] = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += [int(child) for child in file.read_text().split()]
    return found


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _pids() -> Iterator[int]:
    own = os.getpid()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != own:
            yield int(entry.name)


def _listening_sockets(port: int) -> Iterator[str]:
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            columns = line.split()
            if columns[3] == _LISTEN and int(columns[1].rsplit(":", 1)[1], 16) == port:
                yield f"socket:[{columns[9]}]"
