"""`python -m tests.guards.shown` prints a key of the provider: it shows whether a mechanism is off here."""

from __future__ import annotations

import sys
from datetime import UTC, datetime

from deposit_svc.domain import Money, Refund, RefundState


def main() -> None:
    now = datetime.now(UTC)
    refund = Refund("refund", Money(1, "EUR"), RefundState.PENDING, now, now, attempt=1)
    sys.stdout.write(f"{refund.provider_key}\n")


if __name__ == "__main__":
    main()
