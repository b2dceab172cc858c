"""An event loop whose time is set by the test: it runs until everybody waits, and says so by returning."""

from __future__ import annotations

import asyncio
import selectors
from typing import Any


class _Selector(selectors.SelectSelector):
    """Never sleeps. Asked to, it lets the loop's time pass instead."""

    def __init__(self, loop: Loop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None or timeout > 0:
            self._loop.nothing_to_do(timeout)
        return super().select(0)


class Loop(asyncio.SelectorEventLoop):
    """Deterministic: what is ready runs in order, and time passes only in `run`."""

    def __init__(self) -> None:
        self._passed = 0.0
        self._until = 0.0
        super().__init__(_Selector(self))

    def time(self) -> float:
        return self._passed

    def run(self, seconds: float = 0.0) -> None:
        """Until everybody waits for somebody, or for a time later than `seconds` from now."""
        self._until = self._passed + seconds
        self.run_forever()

    def nothing_to_do(self, timeout: float | None) -> None:
        if timeout is None or self._passed + timeout > self._until:
            self._passed = self._until
            self.stop()
        else:
            self._passed += timeout
