"""What history listens to: everything, in whatever order it comes, every version of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dinemesh.kit.inbox import Received, Subscription
from dinemesh.kit.store import Transaction
from history_svc import messages
from history_svc.usecases import Timeline

QUEUE = "history.timeline"


def subscription(timeline: Timeline) -> Subscription:
    """Every event of every service has an entry, also one of a type that is newer than this version."""

    def on_event(tx: Transaction, event: Received[Any]) -> None:
        on_events(tx, [event])

    def on_events(tx: Transaction, events: Sequence[Received[Any]]) -> None:
        timeline.record(tx, *messages.from_events(events))

    return Subscription(
        queue=QUEUE,
        bindings=("#",),
        handlers=dict.fromkeys(messages.READERS, on_event),
        other=on_event,
        together=on_events,
        newest_only=False,
        # An entry has the id of its event.
        effect_is_keyed=True,
    )
