"""curl for the tests."""

from __future__ import annotations

from pathlib import Path

from tests.support import distribution


def folder_with_curl(scratch: Path) -> Path:
    """A folder for PATH in which there is a `curl`."""
    return distribution.folder_with("curl", scratch)


def unpacked(cache: Path, scratch: Path) -> Path:
    """Gets the package `curl` into `cache`; writes into `scratch` the command that starts it."""
    return distribution.unpacked("curl", cache, scratch)
