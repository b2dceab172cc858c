"""Writes the OpenAPI document of the edge, byte for byte the same each time.

Usage:
    python -m protos.openapi            writes protos/openapi.json
    python -m protos.openapi --check    says whether it is what the contracts say, exits 1 if not
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from protos.generate import SOURCES, write_or_compare
from protos.openapi.contracts import read
from protos.openapi.document import document

TARGET = SOURCES / "openapi.json"


def text(sources: Path = SOURCES) -> str:
    """The document as the file has it."""
    return json.dumps(document(read(sources)), indent=2, ensure_ascii=False) + "\n"


def main(arguments: list[str] | None = None) -> int:
    return write_or_compare(TARGET, text, "protos.openapi", __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
