"""What is logged while something runs, as it would stand in the log of a service."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dinemesh.kit import log


class Logged:
    """The lines so far."""

    def __init__(self) -> None:
        self.stream = io.StringIO()

    def lines(self, beginning: str = "") -> list[dict[str, Any]]:
        """The lines whose message begins so, oldest first."""
        said = map(json.loads, self.stream.getvalue().splitlines())
        return [line for line in said if line["message"].startswith(beginning)]


@contextmanager
def logged() -> Iterator[Logged]:
    """Takes the log of this process inside the block, and gives it back."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    taken = Logged()
    log.setup("test", stream=taken.stream)
    try:
        yield taken
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
