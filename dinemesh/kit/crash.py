"""Points at which a test lets a process die: `if __debug__: crash.point("store.commit.before")`.

Services are started with `python -O`, which compiles every point away. Elsewhere a point does nothing unless
CRASH_POINTS in the environment names a folder: then each passing is a line of its file `passed`, and the
process dies where that line is the content of its file `armed`.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable
from contextvars import Context, ContextVar
from pathlib import Path

from dinemesh.kit import call

VARIABLE = "CRASH_POINTS"
EXIT_CODE = 77
DIED = "died at "

_steps: ContextVar[tuple[str, ...]] = ContextVar("dinemesh_crash_steps", default=())


def point(name: str, detail: str = "") -> None:
    """One point. It is told apart by what is being worked on (call, event or worker), what this transaction
    did so far (`did`), and `detail`."""
    folder = _folder()
    if folder is None:
        return
    # "/package.Service/Rpc" and "package.Event" in one word.
    work = call.current.get().method.replace("/", ".").rpartition(".")[2]
    here = " ".join(filter(None, (name, work, *_steps.get(), detail)))
    _write(folder, here)
    if _armed(folder) == here:
        _die(folder, here)


def points(name: str, contexts: Iterable[Context]) -> None:
    """The same point for each of several pieces of work."""
    for context in contexts:
        context.run(point, name)


def did(step: str) -> None:
    """Tells the points that follow in this transaction what has been done."""
    if step not in _steps.get():
        _steps.set((*_steps.get(), step))


def _armed(folder: Path) -> str:
    try:
        return (folder / "armed").read_text()
    except FileNotFoundError:
        return ""


def _die(folder: Path, here: str) -> None:
    try:
        (folder / "armed").unlink()
    except FileNotFoundError:  # another thread is dying, or the test has changed its mind
        return
    _write(folder, DIED + here)
    os._exit(EXIT_CODE)


def _write(folder: Path, line: str) -> None:
    file = os.open(folder / "passed", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        os.write(file, f"{line}\n".encode())
    finally:
        os.close(file)


@functools.cache
def _folder() -> Path | None:
    name = os.environ.get(VARIABLE)
    return Path(name) if name else None
