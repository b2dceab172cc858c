"""Writes the OpenAPI document of the edge, byte for byte the same each time.

Usage:
    python -m protos.openapi            writes protos/openapi.json
    python -m protos.openapi --check    says whether it is what the contracts say, exits 1 if not
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from protos.generate import SOURCES, GenerationFailed
from protos.openapi.contracts import read
from protos.openapi.document import document

TARGET = SOURCES / "openapi.json"


def text(sources: Path = SOURCES) -> str:
    """The document as the file has it."""
    return json.dumps(document(read(sources)), indent=2, ensure_ascii=False) + "\n"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    options = parser.parse_args(arguments)
    try:
        made = text()
    except GenerationFailed as failure:
        print(failure, file=sys.stderr)
        return 1
    if not options.check:
        TARGET.write_text(made)
        print(f"{TARGET.name} written")
    elif not TARGET.exists() or TARGET.read_text() != made:
        print(f"{TARGET.name} is not what the contracts say: run `python -m protos.openapi`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
