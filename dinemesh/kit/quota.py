"""What one party may cost, so that it cannot hold up the others: a token bucket and a short queue for each
key.

One process counts for itself: of several pods each admits as much.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from dinemesh.kit.refusal import Refusal

# A key is forgotten when nothing of it is at work and its bucket is full; they are looked through at this
# many.
_REMEMBERED = 1000
# A call that finds others at work comes back when one of them may be done.
_BUSY_SECONDS = 1.0


class Turn:
    """One admitted call."""

    def __init__(self, account: _Account) -> None:
        self._account = account

    def pay(self, units: float) -> None:
        """Takes `units` off the bucket. It may go below zero: then nobody is admitted until it is filled
        again."""
        self._account.units -= units


@dataclass(eq=False)
class _Account:
    units: float
    filled_at: float
    at_work: int = 0
    order: asyncio.Lock = field(default_factory=asyncio.Lock)


class Quota:
    """Admits the calls of a key one after the other, and as many as its bucket pays for.

    A bucket holds `burst` units and gains `per_second`. A call is admitted while something is in it, and pays
    what it turns out to cost, so that one large call is possible at any time and is paid for by a pause after
    it. At most `at_once` calls of a key are at work or wait for their turn.
    """

    def __init__(
        self,
        *,
        at_once: int,
        per_second: float,
        burst: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._at_once = at_once
        self._per_second = per_second
        self._burst = burst
        self._clock = clock
        self._accounts: dict[str, _Account] = {}

    @asynccontextmanager
    async def turn(self, key: str) -> AsyncIterator[Turn]:
        """A call of `key`, when it is its turn. Refuses with TRY_AGAIN_LATER before anything is done."""
        account = self._account(key)
        self._check(account)
        if account.at_work >= self._at_once:
            raise _refusal("Other changes are being made here.", _BUSY_SECONDS)
        account.at_work += 1
        try:
            async with account.order:
                # Again: what the calls before it cost is known by now.
                self._check(account)
                yield Turn(account)
        finally:
            account.at_work -= 1

    def _check(self, account: _Account) -> None:
        self._fill(account, self._clock())
        if account.units <= 0:
            wait = max(1.0, (1 - account.units) / self._per_second)
            raise _refusal("Too much was changed here in a short time.", wait)

    def _account(self, key: str) -> _Account:
        now = self._clock()
        account = self._accounts.get(key)
        if account is None:
            if len(self._accounts) >= _REMEMBERED:
                self._forget(now)
            account = self._accounts[key] = _Account(self._burst, now)
        return account

    def _fill(self, account: _Account, now: float) -> None:
        account.units = min(self._burst, account.units + (now - account.filled_at) * self._per_second)
        account.filled_at = now

    def _forget(self, now: float) -> None:
        for key, account in list(self._accounts.items()):
            self._fill(account, now)
            if not account.at_work and account.units >= self._burst:
                del self._accounts[key]


def _refusal(why: str, seconds: float) -> Refusal:
    # Those who were refused together do not come back together: the answer spreads its time (errors.spread).
    return Refusal("TRY_AGAIN_LATER", f"{why} Nothing was done by this call.", retry_after=seconds)
