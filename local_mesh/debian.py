"""Gets programs of the distribution into a folder of ours: no root, nothing installed.

apt downloads and verifies (the archive's signatures) with lists and cache of our own; dpkg unpacks. The
finished folder appears under its name by one rename, so a half-finished one is never taken for it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from local_mesh.failure import Failure

CONTENTS = "CONTENTS"
"""Written last into an unpacked folder: the place it was made for, then each package with its version."""

APT_TIMEOUT_SECONDS = 900


class Unpacked:
    """A folder with programs of the distribution."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def packages(self) -> dict[str, str]:
        """Versions by package name."""
        lines = (self.root / CONTENTS).read_text().splitlines()[1:]
        return dict(line.split(" ", 1) for line in lines)

    @property
    def library_path(self) -> str:
        """For LD_LIBRARY_PATH: libraries that this machine did not have."""
        folders = {
            library.parent
            for place in ("lib", "usr/lib")
            for pattern in ("*.so*", "*/lib*.so*")  # some packages keep libraries of their own one below
            for library in self.root.glob(f"{place}/*-linux-*/{pattern}")
        }
        return ":".join(sorted(str(folder) for folder in folders))


def unpack(
    root: Path,
    names: Sequence[str],
    own: Callable[[str], bool],
    left_out: frozenset[str],
    finish: Callable[[Path, Path], None],
    say: Callable[[str], None],
) -> Unpacked:
    """Unpack the packages `names` and what they need into `root`, unless that is done already.

    own: packages taken even where the machine has them installed.
    left_out: needed only by an installed package (users, log rotation, ...).
    finish: gets the folder that was unpacked and the place it will stand at; makes it fit and tries it.
    """
    root.parent.mkdir(parents=True, exist_ok=True)
    with _locked(root.parent / f"{root.name}.lock"):
        contents = root / CONTENTS
        if contents.exists() and contents.read_text().splitlines()[:1] == [str(root)]:
            return Unpacked(root)
        for tool in ("apt-get", "dpkg", "dpkg-query"):
            if shutil.which(tool) is None:
                raise Failure(
                    f"{tool} is missing here, so the package {names[0]} of Debian or Ubuntu cannot be had."
                )
        work = root.parent / f"{root.name}.partial"
        for leftover in (work, root):
            shutil.rmtree(leftover, ignore_errors=True)
        work.mkdir()
        packages = _download(work, names, own, left_out, say)
        (work / "root").mkdir()
        for package in packages:
            _run(["dpkg", "-x", str(package), str(work / "root")], work)
        say("trying it")
        finish(work / "root", root)
        versions = [file.name.split("_") for file in packages]
        lines = [str(root), *(f"{package} {version.replace('%3a', ':')}" for package, version, _ in versions)]
        (work / "root" / CONTENTS).write_text("\n".join(lines) + "\n")
        (work / "root").rename(root)
        shutil.rmtree(work, ignore_errors=True)
        return Unpacked(root)


def _download(
    work: Path,
    names: Sequence[str],
    own: Callable[[str], bool],
    left_out: frozenset[str],
    say: Callable[[str], None],
) -> list[Path]:
    for folder in ("lists/partial", "cache/archives/partial"):
        (work / folder).mkdir(parents=True)
    status = work / "status"
    status.write_text(_status(own, left_out))
    config = work / "apt.conf"
    # The machine's update hooks are for its administrator; `_apt` could not write into our folder.
    config.write_text(
        "#clear APT::Update::Post-Invoke;\n"
        "#clear APT::Update::Post-Invoke-Success;\n"
        f'Dir::State::lists "{work}/lists";\n'
        f'Dir::State::status "{status}";\n'
        f'Dir::State::extended_states "{work}/extended_states";\n'
        f'Dir::Cache "{work}/cache";\n'
        'APT::Sandbox::User "root";\n'
        'APT::Install-Recommends "false";\n'
        'Acquire::Languages "none";\n'
        'Acquire::Retries "2";\n'
        'Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";\n'
        'Acquire::IndexTargets::deb::CNF::DefaultEnabled "false";\n'
    )
    apt = ["apt-get", "-c", str(config), "-q", "-y"]
    say("reading the package lists of this distribution (apt-get update into our own folder)")
    _run([*apt, "update"], work)
    # One line each: 'URI' file bytes hash
    sizes = re.findall(r"^'.*' \S+\.deb (\d+) ", _run([*apt, "--print-uris", "install", *names], work), re.M)
    say(f"downloading {len(sizes)} packages, {sum(map(int, sizes)) / 1e6:.0f} MB")
    _run([*apt, "--download-only", "install", *names], work)
    return sorted((work / "cache/archives").glob("*.deb"))


def _status(own: Callable[[str], bool], left_out: frozenset[str]) -> str:
    """What apt shall take for installed, so that its own solver finds what to fetch: what the machine has and
    is not `own`, and what is left out. Their dependencies are not told: whether they run is not asked."""
    fields = ("Package", "Status", "Architecture", "Multi-Arch", "Version", "Provides")
    layout = "".join(f"{field}: ${{{field}}}\\n" for field in fields) + "\\n"
    there = _run(["dpkg-query", "-W", "-f", layout], Path("/"))
    paragraphs: list[str] = []
    for paragraph in there.split("\n\n"):
        lines = [line for line in paragraph.splitlines() if not line.endswith(": ")]
        values = dict(line.split(": ", 1) for line in lines)
        name = values.get("Package", "")
        if values.get("Status", "").endswith(" installed") and not own(name) and name not in left_out:
            paragraphs.append("\n".join(lines))
    architecture = _run(["dpkg", "--print-architecture"], Path("/")).strip()
    for name in sorted(left_out):
        paragraphs.append(
            f"Package: {name}\nStatus: install ok installed\nArchitecture: {architecture}\n"
            "Multi-Arch: allowed\nVersion: 9999:0"  # new enough for whoever asks
        )
    return "".join(f"{paragraph}\n\n" for paragraph in paragraphs)


def _run(command: Sequence[str], folder: Path) -> str:
    done = subprocess.run(
        command,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=APT_TIMEOUT_SECONDS,
        env={**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"},
        check=False,
    )
    if done.returncode != 0:
        raise Failure(f"`{' '.join(command)}` failed:\n{(done.stdout + done.stderr).strip()}")
    return done.stdout


@contextlib.contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Two commands that come at the same time unpack once."""
    with file.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield
