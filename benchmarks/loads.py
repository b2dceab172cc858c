"""Calls one at a time, and many in flight: how long they took and how they ended."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

OK = "OK"
PAUSE_SECONDS = 0.1
"""Of a caller who was refused."""

Spent = Callable[[], Mapping[str, float]]
"""Processor seconds so far, by part."""


@dataclass
class Load:
    """Calls with many in flight: times in seconds, processor seconds by part."""

    seconds: float = 0.0
    taken: list[float] = field(default_factory=list)
    """Of the successes."""
    outcomes: Counter[str] = field(default_factory=Counter)
    processor: dict[str, float] = field(default_factory=dict)

    @property
    def per_second(self) -> float:
        """Successes only."""
        return self.outcomes[OK] / self.seconds

    def milliseconds_of(self, *parts: str) -> float:
        """Processor time of some parts for each call."""
        return 1000 * sum(self.processor[part] for part in parts) / max(1, self.outcomes.total())


async def one_at_a_time(calls: int, ask: Callable[[], Awaitable[str]], outcomes: Counter[str]) -> list[float]:
    """How long each call took."""
    taken = []
    for _ in range(calls):
        start = time.perf_counter()
        outcomes[await ask()] += 1
        taken.append(time.perf_counter() - start)
    return taken


async def at_once(
    in_flight: int,
    seconds: float,
    ask: Callable[[], Awaitable[str]],
    spent: Spent,
    drained: Callable[[], Awaitable[None]] | None = None,
    quiet: Callable[[], Awaitable[None]] | None = None,
) -> Load:
    """`in_flight` callers, each asking again as soon as it has an answer. What the answers left to be done is
    a part of the load: the time goes on until `drained` returns, the processor is looked at after `quiet`."""
    load = Load()
    before = spent()
    start = time.perf_counter()

    async def caller() -> None:
        while (begun := time.perf_counter()) < start + seconds:
            outcome = await ask()
            load.outcomes[outcome] += 1
            if outcome == OK:
                load.taken.append(time.perf_counter() - begun)
            else:
                await asyncio.sleep(PAUSE_SECONDS)

    await asyncio.gather(*(caller() for _ in range(in_flight)))
    if drained is not None:
        await drained()
    load.seconds = time.perf_counter() - start
    if quiet is not None:
        await quiet()
    after = spent()
    load.processor = {part: after[part] - before[part] for part in before}
    return load
