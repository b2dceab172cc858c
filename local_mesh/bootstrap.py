"""Makes the virtual environment `.venv` from a lock file: `python3 -I local_mesh/bootstrap.py runtime|dev`.

Runs on the machine's own Python, before anything is installed, so it uses the standard library only.
`.venv` is a link to a folder in `.cache/environments`. A new environment is made beside the one in use, by
one process at a time, and `.venv` leads to it when it is complete: a stamp in it, written last, says which
lock it was made from. What runs stays in the environment that it was started from; an installation removes
those that nothing runs from. To make all of it anew: `rm -r .venv .cache/environments`.
Everything is printed to stderr, since the output of `make token` belongs to the token.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
ENVIRONMENTS = ROOT / ".cache" / "environments"
OLDEST = (3, 11)
PROGRESS_SECONDS = 5
GRACE_SECONDS = 1
"""Whoever looked where `.venv` leads just before it changed has started by then, and is seen to run."""


def say(text: str) -> None:
    """Prints to stderr."""
    print(text, file=sys.stderr, flush=True)


def fail(text: str) -> None:
    """Prints the text to stderr and exits with 1."""
    say(text)
    sys.exit(1)


def lock_file(name: str) -> Path:
    """Returns the path of a lock, which need not exist; `name` is "runtime" or "dev"."""
    return ROOT / "requirements" / (name + ".txt")


def lock_hash(name: str) -> str:
    """Returns the first 16 hexadecimal digits of the SHA-256 of a lock; raises OSError without one."""
    return hashlib.sha256(lock_file(name).read_bytes()).hexdigest()[:16]


def stamp(folder: Path, name: str) -> Path:
    """Returns the path of the empty file that tells which content of a lock `folder` was made from."""
    return folder / (".made-from-%s-%s" % (name, lock_hash(name)))


def made_for() -> str:
    """An environment works at one place and with one Python."""
    return "%s with %s\n" % (VENV, sys.version)


def serves(folder: Path, name: str) -> bool:
    """Whether it is complete and holds what the lock says now."""
    place = folder / ".made-for"
    return place.exists() and place.read_text() == made_for() and stamp(folder, name).exists()


def only_one() -> int:
    """Wait until nobody else installs. The installers that we start inherit what is returned, so that one
    that outlives us is waited for too."""
    held = os.open(str(ENVIRONMENTS / "lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say("Another command is installing; waiting for it")
        fcntl.flock(held, fcntl.LOCK_EX)
    return held


def users(folder: Path) -> list[str]:
    """Our processes that run from this folder, each as `pid (command)`."""
    found = []
    below = str(folder) + os.sep
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
            program = os.path.normpath(os.path.join(os.readlink(str(process / "cwd")), command[0]))
            if program.startswith(below) or below in (process / "maps").read_text(errors="replace"):
                found.append("%s (%s)" % (process.name, " ".join(command).strip()))
        except OSError:  # it has ended, or is somebody else's
            continue
    return found


def make_environment(folder: Path, held: int) -> None:
    """Replaces `folder` by a new environment, or exits with 1. `held` comes from `only_one`."""
    say("Making a virtual environment in .venv with Python %d.%d" % sys.version_info[:2])
    shutil.rmtree(str(folder), ignore_errors=True)  # incomplete, so that nothing runs from it
    made = subprocess.run(
        [sys.executable, "-m", "venv", str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
        pass_fds=[held],
    )
    if made.returncode != 0:
        shutil.rmtree(str(folder), ignore_errors=True)
        fail(
            made.stdout.decode(errors="replace").strip()
            + "\n\nThis Python cannot make virtual environments. On Debian or Ubuntu, this installs it:\n"
            "    sudo apt-get install python3-venv"
        )


def install(folder: Path, name: str, held: int) -> None:
    """Lets pip check each package by its hash; exits with 1 if it fails. `held` comes from `only_one`."""
    lock = lock_file(name)
    count = sum(
        1 for line in lock.read_text().splitlines() if "==" in line and not line.startswith((" ", "#"))
    )
    say(
        "Installing %d locked packages (%s); a minute or two the first time" % (count, lock.relative_to(ROOT))
    )
    log = folder / "install.log"
    command = [
        str(folder / "bin" / "python"),
        "-m",
        "pip",
        "install",
        "--disable-pip-version-check",
        "--no-input",
    ]
    command += ["--require-hashes", "--progress-bar", "off", "-r", str(lock)]
    with log.open("wb") as output:
        running = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, pass_fds=[held]
        )
    shown = time.monotonic()
    while running.poll() is None:
        time.sleep(0.1)
        if time.monotonic() - shown >= PROGRESS_SECONDS:
            shown = time.monotonic()
            text = log.read_text(errors="replace")
            if "Installing collected packages" in text:
                say("  unpacking")
            else:
                say(
                    "  %d of %d fetched"
                    % (text.count("\nCollecting ") + text.startswith("Collecting "), count)
                )
    if running.returncode != 0:
        fail(
            "%s\n\npip failed; its whole output is in %s"
            % (log.read_text(errors="replace")[-3000:].strip(), log)
        )


def lead_to(folder: Path) -> None:
    """In one step, so that `.venv` is there at every moment."""
    link = ENVIRONMENTS / "link"
    if link.is_symlink():
        link.unlink()
    link.symlink_to(os.path.relpath(str(folder), str(ROOT)))
    if VENV.is_dir() and not VENV.is_symlink():  # from before it was a link
        VENV.rename(ENVIRONMENTS / ("replaced-%d" % time.time_ns()))
    link.replace(VENV)


def tidy(kept: Path) -> None:
    """Remove the environments that nothing runs from."""
    others = [folder for folder in ENVIRONMENTS.iterdir() if folder.is_dir() and folder != kept]
    if not others:
        return
    time.sleep(GRACE_SECONDS)
    if users(VENV):  # it went by the link, and may mean any of them
        return
    for folder in others:
        if not users(folder):
            shutil.rmtree(str(folder), ignore_errors=True)


def main() -> None:
    """Makes an environment for the lock in argv[1], unless `.venv` serves it. Exits with 1 if Python is too
    old, or if a process runs from a `.venv` that is no link."""
    name = sys.argv[1]
    if sys.version_info < OLDEST:
        fail(
            "Dinemesh needs Python %d.%d or newer; `%s` is %s.\nName a newer one: make %s PYTHON=python3.12"
            % (OLDEST[0], OLDEST[1], sys.executable, sys.version.split()[0], "up")
        )
    if serves(VENV, name):
        return
    ENVIRONMENTS.mkdir(parents=True, exist_ok=True)
    held = only_one()
    if serves(VENV, name):  # made meanwhile
        return
    in_the_way = users(VENV) if VENV.is_dir() and not VENV.is_symlink() else []
    if in_the_way:
        fail(
            ".venv has to be made anew, but these run from it:\n  %s\nEnd them first; a mesh by: make down"
            % "\n  ".join(in_the_way)
        )
    key = hashlib.sha256((lock_hash(name) + made_for()).encode()).hexdigest()[:12]
    folder = ENVIRONMENTS / ("%s-%s" % (name, key))
    if not serves(folder, name):
        make_environment(folder, held)
        install(folder, name, held)
        (folder / ".made-for").write_text(made_for())
        if name == "dev":  # it holds the runtime packages in the same versions
            stamp(folder, "runtime").touch()
        stamp(folder, name).touch()
    lead_to(folder)
    tidy(folder)


try:
    main()
except KeyboardInterrupt:
    sys.exit(130)
