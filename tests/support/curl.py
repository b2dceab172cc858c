"""curl for the tests: the machine's, or the distribution's, unpacked into the project's folder."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from local_mesh.broker import project_cache
from local_mesh.debian import Unpacked, unpack


def folder_with_curl(scratch: Path) -> Path:
    """A folder for PATH in which there is a `curl`."""
    installed = shutil.which("curl")
    if installed is not None:
        return Path(installed).parent
    return unpacked(project_cache(), scratch)


def unpacked(cache: Path, scratch: Path) -> Path:
    """Gets the package `curl` into `cache`; writes into `scratch` the command that starts it."""

    def tried(work: Path, _: Path) -> None:
        _command(Unpacked(work), scratch)
        subprocess.run([scratch / "curl", "--version"], check=True, capture_output=True)

    files = unpack(
        cache / "curl",
        ["curl"],
        own=lambda package: package == "curl",
        left_out=frozenset(),
        finish=tried,
        say=lambda text: print(f"curl: {text}", file=sys.stderr, flush=True),  # noqa: T201
    )
    _command(files, scratch)
    return scratch


def _command(files: Unpacked, scratch: Path) -> None:
    """It finds the libraries that came with it beside those of the machine."""
    command = scratch / "curl"
    command.write_text(
        "#!/bin/sh\n"
        f'LD_LIBRARY_PATH="{files.library_path}${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}}"\n'
        "export LD_LIBRARY_PATH\n"
        f'exec "{files.root}/usr/bin/curl" "$@"\n'
    )
    command.chmod(0o755)
