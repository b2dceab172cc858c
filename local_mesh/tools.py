"""ghz and grpcurl, built in the versions that tools/go.mod names: `make tools`."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

from local_mesh.broker import project_cache
from local_mesh.failure import Failure
from local_mesh.golang import go

MODULE = Path(__file__).resolve().parent.parent / "tools"
NAMES = ("ghz", "grpcurl")


def built(place: Path | None = None) -> Path:
    """The folder with the programs; they are built where they are missing or of other versions."""
    folder = place or project_cache() / "tools"
    stamp = folder / ".made-from"
    wanted = hashlib.sha256(
        b"".join((MODULE / name).read_bytes() for name in ("go.mod", "go.sum"))
    ).hexdigest()
    there = stamp.exists() and stamp.read_text() == wanted and all((folder / name).exists() for name in NAMES)
    if not there:
        sys.stderr.write("Building ghz and grpcurl; the first time takes minutes\n")
        folder.mkdir(parents=True, exist_ok=True)
        stamp.unlink(missing_ok=True)
        # Without debugging information: two thirds of the size.
        go("install", "-ldflags=-s -w", "tool", folder=MODULE, GOBIN=str(folder))
        stamp.write_text(wanted)
    return folder


def main() -> int:
    """Prints where the programs are and how to call them; returns 1 if they cannot be built."""
    try:
        folder = built()
    except Failure as failure:
        print(failure, file=sys.stderr)
        return 1
    print(f"{' and '.join(NAMES)} are in {folder}. To call them by name:")
    print(f'  export PATH="{folder}:$PATH"')
    return 0


if __name__ == "__main__":
    sys.exit(main())
