"""deposit_svc as the use cases see it, in memory: charges once per deposit_id, and answers as the card
says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from reservation_svc.domain import (
    Captured,
    Charge,
    Declined,
    DepositOutcome,
    DepositSnapshot,
    DepositState,
    NotCharged,
    Unknown,
    Voided,
)

OUTCOMES: dict[str, Callable[[], DepositOutcome]] = {
    "tok_visa": Captured,
    "tok_declined": lambda: Declined("insufficient_funds"),
    "tok_overloaded": lambda: NotCharged(3.0),
    "tok_unknown": Unknown,
    "tok_inDoubt": lambda: Unknown("DEPOSIT_IN_DOUBT", answered=True),
    "tok_lostReply": Unknown,
    "tok_voided": Voided,
}
CHARGES = frozenset({"tok_visa", "tok_lostReply"})


class FakeDeposits:
    """`charged`: what the provider would have taken. `gate`: closed, every call waits before it answers."""

    def __init__(self) -> None:
        self.asked: list[Charge] = []
        self.timeouts: list[float] = []
        self.charged: dict[str, int] = {}
        self.gate = asyncio.Event()
        self.gate.set()
        self.healthy = True
        self.questions = 0
        self.arrived = asyncio.Event()

    async def create(self, charge: Charge, timeout: float) -> DepositOutcome:
        self.asked.append(charge)
        self.timeouts.append(timeout)
        if charge.payment_token in CHARGES:
            self.charged[charge.deposit_id] = charge.amount
        self.arrived.set()
        try:
            async with asyncio.timeout(timeout):
                await self.gate.wait()
        except TimeoutError:
            return Unknown()
        return OUTCOMES[charge.payment_token]()

    async def is_healthy(self) -> bool:
        self.questions += 1
        return self.healthy

    def news(self, deposit_id: str) -> DepositSnapshot:
        """What deposit's event would say if nothing was returned yet."""
        captured = deposit_id in self.charged
        return DepositSnapshot(
            deposit_id, DepositState.CAPTURED if captured else DepositState.VOIDED, captured
        )
