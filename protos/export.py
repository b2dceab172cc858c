"""Writes the contracts with all that they import into one folder, for the tools of any language.

Usage:
    python -m protos.export [FOLDER]    writes FOLDER, or build/contracts

`protoc -I FOLDER`, `buf generate FOLDER`, `grpcurl -import-path FOLDER` and @grpc/proto-loader need nothing
else.
FOLDER/dinemesh.binpb is the same as a descriptor set with comments.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from protos.generate import ROOT, SOURCES, GenerationFailed, descriptor_set, google_includes

TARGET = ROOT / "build" / "contracts"
SET = "dinemesh.binpb"
_CONFIG = "buf.yaml"
_PARTS = ("dinemesh", "google", SET, _CONFIG)
# The export has what it imports, so it declares no dependency.
_CONFIG_TEXT = "version: v2\nlint:\n  ignore:\n    - google\nbreaking:\n  ignore:\n    - google\n"


def export(into: Path = TARGET, sources: Path = SOURCES) -> list[Path]:
    """Writes the export into `into`, in place of an earlier one; returns what it wrote, relative, sorted.

    Raises GenerationFailed if the contracts are not valid, or if `into` holds anything but an export.
    """
    if into.exists() and (not into.is_dir() or {one.name for one in into.iterdir()} - set(_PARTS)):
        raise GenerationFailed(
            f"{into} holds something else than exported contracts: name a new or an empty folder"
        )
    described = descriptor_set(sources, source_info=True)
    includes = (sources, *google_includes())
    into.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=into.parent) as folder:
        made = Path(folder) / "made"
        for file in described.file:
            target = made / file.name
            target.parent.mkdir(parents=True, exist_ok=True)
            found = next(one / file.name for one in includes if (one / file.name).is_file())
            target.write_bytes(found.read_bytes())
        (made / SET).write_bytes(described.SerializeToString(deterministic=True))
        (made / _CONFIG).write_text(_CONFIG_TEXT)
        written = sorted(path.relative_to(made) for path in made.rglob("*") if path.is_file())
        if into.exists():
            shutil.rmtree(into)
        made.rename(into)
    return written


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path, default=TARGET)
    folder: Path = parser.parse_args(arguments).folder
    try:
        written = export(folder)
    except GenerationFailed as failure:
        print(failure, file=sys.stderr)
        return 1
    print(f"{len(written)} files in {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
