"""Makes the virtual environment `.venv` from a lock file: `python3 -I local_mesh/bootstrap.py runtime|dev`.

Runs on the machine's own Python, before anything is installed, so it uses the standard library only. A stamp
in the environment says which lock it was made from. It is written last: without it, all is done again.
Everything is printed to stderr, since the output of `make token` belongs to the token.
"""

import hashlib
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
OLDEST = (3, 11)
PROGRESS_SECONDS = 5


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def fail(text: str) -> None:
    say(text)
    sys.exit(1)


def lock_file(name: str) -> Path:
    return ROOT / "requirements" / (name + ".txt")


def stamp(name: str) -> Path:
    return VENV / (".made-from-%s-%s" % (name, hashlib.sha256(lock_file(name).read_bytes()).hexdigest()[:16]))


def made_for() -> str:
    """An environment works at one place and with one Python."""
    return "%s with %s\n" % (VENV, sys.version)


def make_environment() -> None:
    say("Making a virtual environment in .venv with Python %d.%d" % sys.version_info[:2])
    shutil.rmtree(str(VENV), ignore_errors=True)
    made = subprocess.run(
        [sys.executable, "-m", "venv", str(VENV)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    if made.returncode != 0:
        shutil.rmtree(str(VENV), ignore_errors=True)
        fail(
            made.stdout.decode(errors="replace").strip()
            + "\n\nThis Python cannot make virtual environments. On Debian or Ubuntu, this installs it:\n"
            "    sudo apt-get install python3-venv"
        )


def install(name: str) -> None:
    lock = lock_file(name)
    count = sum(
        1 for line in lock.read_text().splitlines() if "==" in line and not line.startswith((" ", "#"))
    )
    say(
        "Installing %d locked packages (%s); a minute or two the first time" % (count, lock.relative_to(ROOT))
    )
    log = VENV / "install.log"
    command = [
        str(VENV / "bin" / "python"),
        "-m",
        "pip",
        "install",
        "--disable-pip-version-check",
        "--no-input",
    ]
    command += ["--require-hashes", "--progress-bar", "off", "-r", str(lock)]
    with log.open("wb") as output:
        running = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
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


def main() -> None:
    name = sys.argv[1]
    if sys.version_info < OLDEST:
        fail(
            "Dinemesh needs Python %d.%d or newer; `%s` is %s.\nName a newer one: make %s PYTHON=python3.12"
            % (OLDEST[0], OLDEST[1], sys.executable, sys.version.split()[0], "up")
        )
    wanted = stamp(name)
    place = VENV / ".made-for"
    fits = place.exists() and place.read_text() == made_for()
    if fits and wanted.exists():
        return
    if not fits or not list(VENV.glob(".made-from-*")):
        make_environment()
        place.write_text(made_for())
    for old in VENV.glob(".made-from-*"):
        old.unlink()
    install(name)
    wanted.touch()
    if name == "dev":  # it holds the runtime packages in the same versions
        stamp("runtime").touch()


main()
