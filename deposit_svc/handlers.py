"""What deposit listens to: every event of reservation, for the money instructions that all of them carry."""

from __future__ import annotations

from typing import Any

from deposit_svc import messages
from deposit_svc.usecases import Deposits
from dinemesh.kit.inbox import Received, Subscription
from dinemesh.kit.store import Transaction

QUEUE = "deposit.instructions"


def subscription(deposits: Deposits) -> Subscription:
    """Listens to all that reservation tells, and applies the instructions in the event's own transaction."""

    def on_reservation(tx: Transaction, event: Received[Any]) -> None:
        snapshot = event.message.reservation
        deposits.apply_instructions(
            tx, messages.from_reservation(snapshot), snapshot.customer_id, snapshot.reservation_id
        )

    return Subscription(
        queue=QUEUE,
        bindings=("reservation.v1.*",),
        handlers=dict.fromkeys(messages.RESERVATION_EVENTS, on_reservation),
        # Each instruction takes effect once by its id, and money that is owed waits for no version.
        newest_only=False,
        effect_is_keyed=True,
    )
