"""A payment provider in memory, with the faults of a real one at the push of a button."""

from __future__ import annotations

import asyncio

from deposit_svc.domain import Money
from deposit_svc.provider import (
    Charged,
    ChargeOutcome,
    Closed,
    Declined,
    OutcomeUnknown,
    RefundOutcome,
    Refused,
    Returned,
)


class Gate:
    """Holds whoever passes while it is shut, and tells when somebody waits."""

    def __init__(self) -> None:
        self._open = asyncio.Event()
        self._open.set()
        self.reached = asyncio.Event()

    def shut(self) -> None:
        self._open.clear()

    def open(self) -> None:
        self._open.set()

    async def passed(self) -> None:
        self.reached.set()
        await self._open.wait()


class FakeProvider:
    """Decides each key once. `arriving` is passed before a charge is decided, `answering` after it."""

    def __init__(self) -> None:
        self.charges: dict[str, tuple[Money, ChargeOutcome]] = {}
        self.refunds: dict[str, tuple[str, Money, RefundOutcome]] = {}
        self.arriving = Gate()
        self.answering = Gate()
        self.charge_calls = 0
        self.down = False
        self.loses_replies = False
        self.refuses_refunds = False

    async def charge(self, key: str, amount: Money, token: str, timeout: float) -> ChargeOutcome:
        self.charge_calls += 1
        self._must_be_up()
        await self.arriving.passed()
        outcome: ChargeOutcome = Declined("card_declined") if token == "tok_chargeDeclined" else Charged()
        _, outcome = self.charges.setdefault(key, (amount, outcome))
        await self.answering.passed()
        self._may_lose_the_reply()
        return outcome

    async def find(self, key: str) -> ChargeOutcome | None:
        self._must_be_up()
        return self.charges[key][1] if key in self.charges else None

    async def close(self, key: str) -> ChargeOutcome:
        self._must_be_up()
        return self.charges.setdefault(key, (Money(0, ""), Closed()))[1]

    async def refund(self, key: str, charge_key: str, amount: Money) -> RefundOutcome:
        self._must_be_up()
        charged, outcome = self.charges[charge_key]
        assert outcome == Charged(), "a refund of what was never charged"
        if key not in self.refunds:
            assert self.returned(charge_key) + amount.minor <= charged.minor, "more back than was charged"
            refused = self.refuses_refunds
            self.refunds[key] = charge_key, amount, Refused("refund_blocked") if refused else Returned()
        self._may_lose_the_reply()
        return self.refunds[key][2]

    def charged(self, key: str) -> int:
        """What was charged under a key, in minor units."""
        amount, outcome = self.charges.get(key, (Money(0, ""), Closed()))
        return amount.minor if outcome == Charged() else 0

    def returned(self, charge_key: str) -> int:
        """What went back of a charge, in minor units."""
        return sum(
            amount.minor
            for of, amount, outcome in self.refunds.values()
            if of == charge_key and outcome == Returned()
        )

    def _must_be_up(self) -> None:
        if self.down:
            raise OutcomeUnknown("the provider is down")

    def _may_lose_the_reply(self) -> None:
        if self.loses_replies:
            raise OutcomeUnknown("the reply was lost")
