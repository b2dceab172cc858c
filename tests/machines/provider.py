"""The payment provider of the machines: each key is decided once; requests and replies may get lost."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

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

DECLINED_CARD = "tok_chargeDeclined"


@dataclass(eq=False)
class Asked:
    """A charge on its way to the provider; it may arrive when nobody waits for it any more."""

    key: str
    amount: Money
    token: str
    reply: asyncio.Future[ChargeOutcome] = field(repr=False)


class Provider:
    """`charges` and `refunds` are its own record, which the books are held against."""

    def __init__(self) -> None:
        self.charges: dict[str, tuple[Money, ChargeOutcome]] = {}
        self.refunds: dict[str, tuple[str, Money, RefundOutcome]] = {}
        self.on_the_way: list[Asked] = []
        self.down = False
        self.loses_replies = False
        self.refuses_refunds = False

    async def charge(self, key: str, amount: Money, token: str, timeout: float) -> ChargeOutcome:
        asked = Asked(key, amount, token, asyncio.get_running_loop().create_future())
        self.on_the_way.append(asked)
        try:
            async with asyncio.timeout(timeout):
                return await asked.reply
        except TimeoutError:
            raise OutcomeUnknown("no answer in time") from None

    def arrives(self, asked: Asked, *, answered: bool) -> None:
        """The charge is decided, and told to whoever still waits."""
        self.on_the_way.remove(asked)
        outcome: ChargeOutcome = Declined("card_declined") if asked.token == DECLINED_CARD else Charged()
        _, outcome = self.charges.setdefault(asked.key, (asked.amount, outcome))
        if answered and not asked.reply.done():
            asked.reply.set_result(outcome)

    async def find(self, key: str) -> ChargeOutcome | None:
        self._must_be_up()
        return self.charges[key][1] if key in self.charges else None

    async def close(self, key: str) -> ChargeOutcome:
        self._must_be_up()
        outcome = self.charges.setdefault(key, (Money(0, ""), Closed()))[1]
        self._may_lose_the_reply()
        return outcome

    async def refund(self, key: str, charge_key: str, amount: Money) -> RefundOutcome:
        self._must_be_up()
        charged, outcome = self.charges[charge_key]
        assert outcome == Charged(), "a refund of what was never charged"
        if key not in self.refunds:
            assert self.returned(charge_key) + amount.minor <= charged.minor, "more back than was charged"
            refused = self.refuses_refunds
            self.refunds[key] = charge_key, amount, Refused("refund_blocked") if refused else Returned()
        assert self.refunds[key][:2] == (charge_key, amount), "a key that was used for another refund"
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

    def is_well_again(self) -> None:
        """From now on everything is answered; what was on its way is lost."""
        self.on_the_way.clear()
        self.down = self.loses_replies = self.refuses_refunds = False

    def _must_be_up(self) -> None:
        if self.down:
            raise OutcomeUnknown("the provider is down")

    def _may_lose_the_reply(self) -> None:
        if self.loses_replies:
            raise OutcomeUnknown("the reply was lost")
