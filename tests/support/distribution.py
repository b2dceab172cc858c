"""A program for the tests: the machine's, or the distribution's, unpacked into the project's folder."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from local_mesh.broker import project_cache
from local_mesh.debian import Unpacked, unpack


def folder_with(program: str, scratch: Path) -> Path:
    """A folder for PATH in which there is `program`, which is also the name of its package."""
    installed = shutil.which(program)
    if installed is not None:
        return Path(installed).parent
    return unpacked(program, project_cache(), scratch)


def unpacked(program: str, cache: Path, scratch: Path) -> Path:
    """Gets the package into `cache`; writes into `scratch` the command that starts it."""

    def tried(work: Path, _: Path) -> None:
        _command(program, Unpacked(work), scratch)
        subprocess.run([scratch / program, "--version"], check=True, capture_output=True)

    files = unpack(
        cache / program,
        [program],
        own=lambda package: package == program,
        left_out=frozenset(),
        finish=tried,
        say=lambda text: print(f"{program}: {text}", file=sys.stderr, flush=True),  # noqa: T201
    )
    _command(program, files, scratch)
    return scratch


def _command(program: str, files: Unpacked, scratch: Path) -> None:
    """It finds the libraries that came with it beside those of the machine."""
    command = scratch / program
    command.write_text(
        "#!/bin/sh\n"
        f'LD_LIBRARY_PATH="{files.library_path}${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}}"\n'
        "export LD_LIBRARY_PATH\n"
        f'exec "{files.root}/usr/bin/{program}" "$@"\n'
    )
    command.chmod(0o755)
