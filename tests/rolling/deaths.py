"""One of two instances dies by SIGKILL in the middle of its work, and the other one takes over what it left.

Which work is whose no table says. So the process is stopped for a moment (SIGSTOP): what stays open then,
while the other instance goes on, is its own; with that it is killed.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from operations.limits import Limits
from tests.rolling.run import Scene, Void, _join, books_agree, load
from tests.support.mesh import state_of

_CLAIMED = "SELECT event_id AS id FROM outbox WHERE sent_time IS NULL AND claim_until IS NOT NULL"
OPEN: dict[str, dict[str, str]] = {
    "reservation": {
        "claimed event": _CLAIMED,
        "attempt": "SELECT reservation_id AS id FROM reservations WHERE state = 'PENDING_DEPOSIT'",
    },
    "deposit": {
        "claimed event": _CLAIMED,
        "charge": "SELECT deposit_id AS id FROM deposits WHERE state IN ('PENDING', 'VOIDING')",
        "refund": "SELECT refund_id AS id FROM refunds WHERE state = 'PENDING'",
    },
    "restaurant": {"claimed event": _CLAIMED},
}
"""What an instance may leave half done, by service: ids."""

STOPS = 150
"""How often a process is stopped until it is caught at something."""
LOOK_SECONDS = 0.3
STILL_SECONDS = 1.5
"""What is open a moment after the stop, and so long after that, is not the other instance's: the slowest
charge takes 0.4 s."""
TAKEN_OVER_SECONDS = 60.0
"""Twice the longest lease, that of a claimed event."""
AT_REST = Limits(timedelta(0), timedelta(0))

Left = frozenset[tuple[str, str]]
"""Kinds and ids."""


@dataclass(frozen=True)
class Death:
    service: str
    pid: int
    left: Left
    seconds: float
    """Until the other one had done all of it."""

    def __str__(self) -> str:
        kinds = Counter(kind for kind, _ in self.left)
        what = ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items()))
        return f"{self.service} (pid {self.pid}) killed with {what}: taken over after {self.seconds:.1f} s"


async def taken_over(scene: Scene, service: str) -> Death:
    """Kills one of two instances in the middle of its work. Raises Void if it was never caught at any, and
    AssertionError if what it left stays or the books do not agree afterwards."""
    pair = scene.pairs[service]
    async with load(scene):
        await _join(scene, pair)
        pid = pair.running.pid
        left = await _stopped_at_work(scene, service, pid)
        begin = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        await asyncio.to_thread(pair.running.wait_for_exit)
        if state_of(pid):
            raise Void(f"VOID: {service} (pid {pid}) was killed and lives")
        pair.swap()
        rest = left
        while rest and time.monotonic() < begin + TAKEN_OVER_SECONDS:
            await asyncio.sleep(LOOK_SECONDS)
            rest = left & await _open(scene, service)
        death = Death(service, pid, left, time.monotonic() - begin)
    assert not rest, f"nobody took over {sorted(rest)}"
    await books_agree(scene, AT_REST)
    return death


async def _stopped_at_work(scene: Scene, service: str, pid: int) -> Left:
    """Leaves the process stopped."""
    for _ in range(STOPS):
        os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(LOOK_SECONDS)
        held = await _open(scene, service)
        if held:
            await asyncio.sleep(STILL_SECONDS)
            held &= await _open(scene, service)
        if held:
            return held
        os.kill(pid, signal.SIGCONT)
        await asyncio.sleep(LOOK_SECONDS)
    raise Void(f"VOID: {service} (pid {pid}) was never caught at work")


async def _open(scene: Scene, service: str) -> Left:
    return await asyncio.to_thread(_read, scene.mesh.databases[service], OPEN[service])


def _read(url: str, queries: dict[str, str]) -> Left:
    engine = create_engine(url, poolclass=NullPool)
    try:
        with engine.connect() as connection:
            return frozenset(
                (kind, row.id) for kind, query in queries.items() for row in connection.execute(text(query))
            )
    finally:
        engine.dispose()
