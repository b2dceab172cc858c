"""A file system of a few megabytes that a test fills up, without root.

It is a tmpfs in a user and mount namespace of its own: only processes that are started in there see it. All
of them are the user who runs the tests, with another number, which PostgreSQL wants not to be root's.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.guards import switch
from tests.support.process import ROOT, Child, spawn

# "daemon" on every Debian. It has to have a name, and must not be root.
NAMED_USER = ("--user", "--map-user=1", "--map-group=1")


class SmallDisk:
    """A disk of `megabytes`, mounted on the empty folder `mount` for the processes started in here."""

    def __init__(self, mount: Path, megabytes: int) -> None:
        self.mount = mount
        self.mount.mkdir(parents=True, exist_ok=True)
        mounted = f"mount -t tmpfs -o size={megabytes}m,mode=0700 tmpfs '{mount}' && echo there"
        self._holder = subprocess.Popen(
            [
                *("unshare", *NAMED_USER, "--keep-caps", "--mount", "--"),
                *("setpriv", "--pdeathsig", "KILL", "--", "sh", "-c", f"{mounted} && exec sleep infinity"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == b"there\n", "the small disk cannot be mounted"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def outside(self) -> Path:
        """Where this process finds the disk. SQLite would follow the path to the folder below."""
        return Path(f"/proc/{self._holder.pid}/root{self.mount}")

    @property
    def free_bytes(self) -> int:
        there = os.statvfs(self.outside)
        return there.f_bavail * there.f_frsize

    def inside(self, command: Sequence[str]) -> list[str]:
        """The command that runs `command` where the disk is. It ends with who starts it."""
        enter = f"--target={self._holder.pid}"
        return [
            *("nsenter", enter, "--user", "--mount", "--preserve-credentials", "--"),
            *("env", f"--chdir={ROOT}", "setpriv", "--pdeathsig", "KILL", "--", *command),
        ]

    def launch(self, module: str, environment: dict[str, str], log: Path) -> Child:
        """As tests.support.mesh.launch, where the disk is."""
        modules = ["tests.guards.start", module] if environment.get(switch.VARIABLE) else [module]
        return self.spawn([sys.executable, "-m", *modules], environment, log)

    def spawn(self, command: Sequence[str], environment: Mapping[str, str] | None, log: Path) -> Child:
        """Starts any command where the disk is."""
        return spawn(self.inside(command), environment, log)

    def fill(self, *, leave_bytes: int = 0) -> None:
        """Until nothing more can be written, or only `leave_bytes` more."""
        with (self.outside / "filler").open("ab", buffering=0) as filler:
            for size in (1 << 16, 1 << 12):
                while self.free_bytes - size >= leave_bytes:
                    filler.write(b"x" * size)
        assert self.free_bytes <= leave_bytes + (1 << 12)

    def make_room(self) -> None:
        """What `fill` took is free again."""
        (self.outside / "filler").unlink(missing_ok=True)

    def close(self) -> None:
        """The disk is gone with the last process that is started in there."""
        self._holder.kill()
        self._holder.wait()
        assert self._holder.stdout is not None
        self._holder.stdout.close()
