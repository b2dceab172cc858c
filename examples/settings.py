"""Where the examples look for the mesh: what is set for it is set for them."""

from __future__ import annotations

import os


def edge() -> str:
    """host:port: EDGE, else at the port that the mesh is told."""
    return os.environ.get("EDGE") or f"127.0.0.1:{os.environ.get('DINEMESH_EDGE_PORT') or 8080}"


def logs() -> str:
    """The folder of the mesh's logs."""
    return f"{os.environ.get('DINEMESH_STATE_DIR') or '.local'}/logs"
