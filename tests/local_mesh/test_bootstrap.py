"""Installing: by one at a time, complete before it replaces, and never under what runs.

A checkout of its own with one package, which is built here. Where an installation has to be caught in the
middle, its lock file includes a named pipe, so that pip waits there until the test writes into it.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.local_mesh.running import wait_until
from tests.support.mesh import ROOT

TELL = "import sys; print(sys.prefix, flush=True); input(); import stew; print(stew.VERSION)"


class Checkout:
    """A folder with bootstrap.py and lock files, and what `make` asks of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.gate = folder / "requirements" / "gate.txt"
        self.processes: list[subprocess.Popen[str]] = []
        for name in ("local_mesh", "requirements", "packages"):
            (folder / name).mkdir(parents=True)
        shutil.copy(ROOT / "local_mesh" / "bootstrap.py", folder / "local_mesh")
        self.lock("runtime", 1)
        self.lock("dev", 1)

    def lock(self, name: str, version: int, *, held: bool = False, content: str = "") -> None:
        file = wheel(self.folder / "packages", version)
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        if held and not self.gate.exists():
            os.mkfifo(self.gate)
        (self.folder / "requirements" / f"{name}.txt").write_text(
            f"# {name}\n--no-index\n--find-links {file.parent}\n"
            + ("-r gate.txt\n" if held else "")
            + (content or f"stew=={version} --hash=sha256:{digest}\n")
        )

    def open_gate(self) -> None:
        """Returns when pip has come to it, and lets it pass."""
        self.gate.write_text("\n")

    def make(self, name: str) -> subprocess.Popen[str]:
        return self.spawn(sys.executable, "-I", "local_mesh/bootstrap.py", name)

    def made(self, name: str) -> str:
        return said(self.make(name), 0)

    def run_from(self, python: Path) -> subprocess.Popen[str]:
        """A process that imports only when it is told to, as services do."""
        return self.spawn(str(python), "-c", TELL)

    def spawn(self, *command: str) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        process = subprocess.Popen(
            command, cwd=self.folder, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, text=True
        )
        self.processes.append(process)
        return process

    @property
    def bin(self) -> Path:
        """As the Makefile finds it."""
        return Path(os.path.realpath(self.folder / ".venv" / "bin"))

    def version(self) -> int:
        """What is installed where `.venv` leads to."""
        command = [str(self.folder / ".venv/bin/python"), "-c", "import stew; print(stew.VERSION)"]
        return int(subprocess.run(command, check=True, capture_output=True, timeout=30).stdout)

    def installs(self) -> bool:
        return any((self.folder / ".cache" / "environments").glob("*/install.log"))


def wheel(folder: Path, version: int) -> Path:
    """The package `stew`, which knows its version."""
    about = f"stew-{version}.dist-info"
    files = {
        "stew.py": f"VERSION = {version}\n",
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: stew\nVersion: {version}\n",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(
        f"{name},sha256={base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip('=')},"
        f"{len(text)}\n"
        for name, text in files.items()
    )
    made = folder / f"stew-{version}-py3-none-any.whl"
    with zipfile.ZipFile(made, "w") as archive:
        for name, text in {**files, f"{about}/RECORD": f"{record}{about}/RECORD,,\n"}.items():
            archive.writestr(zipfile.ZipInfo(name), text)
    return made


def said(process: subprocess.Popen[str], code: int) -> str:
    told, _ = process.communicate(timeout=120)
    assert process.returncode == code, told
    return told


@pytest.fixture
def checkout(tmp_path: Path) -> Iterator[Checkout]:
    made = Checkout(tmp_path / "checkout")
    try:
        yield made
    finally:
        for process in made.processes:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.communicate(timeout=30)


def test_what_runs_goes_on_while_another_environment_is_made_and_after_it(checkout: Checkout) -> None:
    assert "Installing 1 locked packages" in checkout.made("runtime")
    assert checkout.made("runtime") == ""
    before = checkout.bin
    running = checkout.run_from(before / "python")
    assert running.stdout is not None
    assert running.stdout.readline().strip() == str(before.parent)

    checkout.lock("dev", 2, held=True)
    installing = checkout.make("dev")
    wait_until(lambda: len(list(before.parent.parent.glob("*/install.log"))) == 2, "pip has started")
    # Complete before it replaces: other targets meet what was there, and do not wait.
    assert checkout.made("runtime") == ""
    assert (checkout.bin, checkout.version()) == (before, 1)
    checkout.open_gate()
    said(installing, 0)
    assert (checkout.bin != before, checkout.version()) == (True, 2)
    assert checkout.made("runtime") == "", "the environment for developers serves the other targets too"

    told, _ = running.communicate("go\n", timeout=30)
    assert (running.returncode, told) == (0, "1\n"), "it imports what it was started with"
    # Nothing runs from it any more: the next installation removes it.
    assert before.exists()
    checkout.lock("dev", 3)
    checkout.made("dev")
    assert checkout.version() == 3
    assert not before.exists()


@pytest.mark.parametrize("killed", [False, True], ids=["at the same time", "after one that was killed"])
def test_only_one_installs(checkout: Checkout, killed: bool) -> None:
    """Another one waits, for the pip of a killed one too: two in one folder would spoil it."""
    checkout.lock("dev", 1, held=True)
    first = checkout.make("dev")
    wait_until(checkout.installs, "pip has started")
    if killed:
        first.send_signal(signal.SIGKILL)
        first.wait(30)
    second = checkout.make("runtime")
    assert second.stdout is not None
    assert second.stdout.readline() == "Another command is installing; waiting for it\n"
    checkout.open_gate()
    told = said(second, 0)
    if killed:
        assert "Installing 1 locked packages (requirements/runtime.txt)" in told
    else:
        said(first, 0)
        assert told == "", "what the first one made serves the second one"
    assert checkout.version() == 1


def test_an_installation_that_fails_replaces_nothing(checkout: Checkout) -> None:
    checkout.made("runtime")
    before = checkout.bin
    checkout.lock("dev", 2, content="stew==2 --hash=sha256:" + "0" * 64 + "\n")
    assert "pip failed; its whole output is in" in said(checkout.make("dev"), 1)
    assert (checkout.bin, checkout.version()) == (before, 1)
    assert checkout.made("runtime") == ""


def test_an_environment_from_before_it_was_a_link_is_replaced_unless_something_runs_from_it(
    checkout: Checkout,
) -> None:
    old = checkout.folder / ".venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(old)], check=True, timeout=60)
    running = checkout.run_from(Path(".venv/bin/python"))
    assert running.stdout is not None
    assert running.stdout.readline().strip() == str(old)
    refused = said(checkout.make("runtime"), 1)
    assert f"these run from it:\n  {running.pid} (.venv/bin/python -c" in refused
    assert "make down" in refused
    assert not old.is_symlink()
    running.kill()
    running.wait(30)
    checkout.made("runtime")
    assert old.is_symlink()
    assert checkout.version() == 1
    assert [folder.name[:7] for folder in checkout.bin.parent.parent.iterdir() if folder.is_dir()] == [
        "runtime"
    ]
