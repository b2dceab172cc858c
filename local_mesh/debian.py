"""Gets programs of the distribution into a folder of ours: no root, nothing installed.

apt downloads and verifies (the archive's signatures) with lists and cache of our own; dpkg unpacks. The
finished folder appears under its name by one rename, so a half-finished one is never taken for it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
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
            for library in self.root.glob(f"{place}/*-linux-*/*.so*")
        }
        return ":".join(sorted(str(folder) for folder in folders))


def unpack(
    root: Path,
    name: str,
    own: Callable[[str], bool],
    left_out: frozenset[str],
    finish: Callable[[Path, Path], None],
    say: Callable[[str], None],
) -> Unpacked:
    """Unpack package `name` and what it needs into `root`, unless that is done already.

    own: packages taken even where the machine has them installed, because they must stand in one folder.
    left_out: needed only by an installed package (users, log rotation, ...).
    finish: gets the folder that was unpacked and the place it will stand at; makes it fit and tries it.
    """
    root.parent.mkdir(parents=True, exist_ok=True)
    with _locked(root.parent / f"{root.name}.lock"):
        contents = root / CONTENTS
        if contents.exists() and contents.read_text().splitlines()[:1] == [str(root)]:
            return Unpacked(root)
        for tool in ("apt-get", "apt-cache", "dpkg", "dpkg-query"):
            if shutil.which(tool) is None:
                raise Failure(
                    f"{tool} is missing here, so the package {name} of Debian or Ubuntu cannot be had."
                )
        work = root.parent / f"{root.name}.partial"
        for leftover in (work, root):
            shutil.rmtree(leftover, ignore_errors=True)
        work.mkdir()
        _download_and_unpack(work, name, own, left_out, say)
        say("trying it")
        finish(work / "root", root)
        versions = [file.name.split("_") for file in sorted((work / "packages").glob("*.deb"))]
        lines = [str(root), *(f"{package} {version.replace('%3a', ':')}" for package, version, _ in versions)]
        (work / "root" / CONTENTS).write_text("\n".join(lines) + "\n")
        (work / "root").rename(root)
        shutil.rmtree(work, ignore_errors=True)
        return Unpacked(root)


def _download_and_unpack(
    work: Path, name: str, own: Callable[[str], bool], left_out: frozenset[str], say: Callable[[str], None]
) -> None:
    for folder in ("lists/partial", "cache/archives/partial", "packages", "root"):
        (work / folder).mkdir(parents=True)
    config = work / "apt.conf"
    # The machine's update hooks are for its administrator; `_apt` could not write into our folder.
    config.write_text(
        "#clear APT::Update::Post-Invoke;\n"
        "#clear APT::Update::Post-Invoke-Success;\n"
        f'Dir::State::lists "{work}/lists";\n'
        f'Dir::Cache "{work}/cache";\n'
        'APT::Sandbox::User "root";\n'
        'Acquire::Languages "none";\n'
        'Acquire::Retries "2";\n'
        'Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";\n'
        'Acquire::IndexTargets::deb::CNF::DefaultEnabled "false";\n'
    )
    apt = ["-c", str(config), "-q"]
    say("reading the package lists of this distribution (apt-get update into our own folder)")
    _run(["apt-get", *apt, "update"], work)
    wanted = _closure(name, lambda package: _dependencies(package, apt, work), own, left_out)
    say(f"downloading {len(wanted)} packages")
    _run(["apt-get", *apt, "download", *wanted], work / "packages")
    for package in sorted((work / "packages").glob("*.deb")):
        _run(["dpkg", "-x", str(package), str(work / "root")], work)


def _closure(
    name: str,
    dependencies: Callable[[str], Sequence[str]],
    own: Callable[[str], bool],
    left_out: frozenset[str],
) -> list[str]:
    """`name` and everything below it that the machine lacks or that `own` claims."""
    wanted: list[str] = []
    open_names = [name]
    while open_names:
        package = open_names.pop()
        if package in wanted or package in left_out or (_is_installed(package) and not own(package)):
            continue
        wanted.append(package)
        open_names.extend(dependencies(package))
    return sorted(wanted)


def _dependencies(package: str, apt: Sequence[str], work: Path) -> list[str]:
    """What `package` depends on; of alternatives, the first."""
    names: list[str] = []
    text = _run(["apt-cache", *apt, "show", "--no-all-versions", package], work)
    for line in text.splitlines():
        field, _, value = line.partition(":")
        if field in ("Depends", "Pre-Depends"):
            for group in value.split(","):
                first = group.split("|")[0].strip()
                names.append(first.split(" ")[0].split(":")[0])
    return names


def _is_installed(package: str) -> bool:
    asked = subprocess.run(
        ["dpkg-query", "-W", "-f", "${db:Status-Status}\n", package],
        capture_output=True,
        text=True,
        check=False,
    )
    return "installed" in asked.stdout.split()


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
