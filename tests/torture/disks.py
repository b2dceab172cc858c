"""Small disks of a run's own, each under one database, which can be full or read-only.

Each is a tmpfs. The whole run lives in a user and mount namespace that it makes for itself, so that it needs
no privilege, and so that the services, the books and the audit see the same files.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.support.small_disk import NAMED_USER

_INSIDE = "DINEMESH_TORTURE_INSIDE"
_MS_RDONLY, _MS_REMOUNT = 1, 32
MEGABYTES = 256
"""Far more than a run writes; only what is written takes memory."""
BUSY_SECONDS = 5.0
"""How long somebody may go on reading a disk that is to become read-only."""


def enter(module: str, arguments: Sequence[str]) -> None:
    """Starts `python -m module` again where this process may mount, unless it is there already."""
    if os.environ.get(_INSIDE):
        return
    command = [sys.executable, "-m", module, *arguments]
    os.environ[_INSIDE] = "1"
    os.execvp("unshare", ["unshare", *NAMED_USER, "--keep-caps", "--mount", "--", *command])


class Disk:
    """Mounted on the folder `mount`, for this process and those that it starts."""

    def __init__(self, mount: Path) -> None:
        self.mount = mount
        mount.mkdir(parents=True)
        _mount(mount, 0, f"size={MEGABYTES}m,mode=0700")

    @property
    def free_bytes(self) -> int:
        there = os.statvfs(self.mount)
        return there.f_bavail * there.f_frsize

    def fill(self) -> None:
        """From now on it has no more room than what is written already takes."""
        while self.free_bytes:
            there = os.statvfs(self.mount)
            used = (there.f_blocks - there.f_bfree) * there.f_frsize
            assert used, "there is nothing on it, and size=0 would be no limit"
            try:
                _mount(self.mount, _MS_REMOUNT, f"size={used}")
            except OSError as error:
                if error.errno != errno.EINVAL:  # more was written meanwhile
                    raise

    def make_room(self) -> None:
        _mount(self.mount, _MS_REMOUNT, f"size={MEGABYTES}m")

    def forbid_writing(self) -> None:
        """As the kernel does after an error. Nobody may have a file open that could be written."""
        end = time.monotonic() + BUSY_SECONDS
        while True:
            try:
                _mount(self.mount, _MS_REMOUNT | _MS_RDONLY, "")
                return
            except OSError as error:
                if error.errno != errno.EBUSY or time.monotonic() > end:
                    raise
            time.sleep(0.02)

    def allow_writing(self) -> None:
        _mount(self.mount, _MS_REMOUNT, "")

    def refusal(self) -> str:
        """The error that a write gets; "" if there is none."""
        probe = self.mount / "probe"
        try:
            probe.write_bytes(b"x" * 8192)
        except OSError as error:
            return errno.errorcode.get(error.errno or 0, str(error))
        finally:
            try:
                probe.unlink(missing_ok=True)
            except OSError as error:
                if error.errno != errno.EROFS:
                    raise
        return ""


def _mount(where: Path, flags: int, options: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tmpfs", os.fsencode(where), b"tmpfs", flags, options.encode()) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{os.strerror(code)}: a mount on {where}")
