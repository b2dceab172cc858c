"""The payment provider, as deposit sees any of them: four calls, each with a key that makes it happen once.

A provider is a file beside this one that fills `Provider`, and a value of the setting `provider`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from deposit_svc.domain import Money


class OutcomeUnknown(Exception):
    """No definite answer: the charge or refund may have happened. Never a reason to assume either."""


@dataclass(frozen=True)
class Charged:
    """The card was charged."""


@dataclass(frozen=True)
class Declined:
    """The card was refused for good; nothing was charged."""

    code: str


@dataclass(frozen=True)
class Closed:
    """Nothing was charged under this key, and nothing ever will be."""


@dataclass(frozen=True)
class Returned:
    """The money went back."""


@dataclass(frozen=True)
class Refused:
    """Refused for good under this key; another key may be tried when the cause is lifted."""

    code: str


ChargeOutcome = Charged | Declined | Closed
RefundOutcome = Returned | Refused


class Provider(Protocol):
    """Every call ends in bounded time and may raise OutcomeUnknown."""

    async def charge(self, key: str, amount: Money, token: str, timeout: float) -> ChargeOutcome:
        """Charges once per key; gives up waiting after `timeout` seconds."""

    async def find(self, key: str) -> ChargeOutcome | None:
        """What became of the charge; None when the provider has not seen it (yet)."""

    async def close(self, key: str) -> ChargeOutcome:
        """Forbids any later charge under the key, or tells of the one that was there, in one step."""

    async def refund(self, key: str, charge_key: str, amount: Money) -> RefundOutcome:
        """Returns a part of a charge once per key."""
