"""No event is stuck: outboxes are empty or young, every subscriber has taken every one, history has it, and
nothing lies dead.

What was published, and taken, longer ago than the retention is no longer on record anywhere but in history.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Generic, TypeVar

from operations.backlog import missed, untaken
from operations.broker import LISTENS
from operations.checks.check import Check
from operations.limits import Limits
from operations.report import Violation
from operations.snapshot import About, Snapshot

OUTBOX, INBOXES, HISTORY, DEAD_LETTERS = "outbox", "inboxes", "history", "dead letters"
# One line a service or type, however many events: the ids of the first few are enough to look closer.
_SHOWN = 3
SERVICES_LISTEN = [queue for queue in LISTENS if not queue.startswith("history.")]
_PUBLISHERS = ("reservation_db", "deposit_db", "restaurant_db")

K = TypeVar("K", bound=Hashable)


@dataclass
class _Ids:
    """The lowest of the ids, and how many there are."""

    count: int = 0
    lowest: list[str] = field(default_factory=list)

    def add(self, event_id: str) -> None:
        self.count += 1
        self.lowest = sorted([*self.lowest, event_id])[: _SHOWN + 1]

    def __str__(self) -> str:
        more = ", ..." if self.count > _SHOWN else ""
        return ", ".join(self.lowest[:_SHOWN]) + more


class _By(Generic[K]):
    """Ids by what they have in common."""

    def __init__(self) -> None:
        self.found: dict[K, _Ids] = {}

    def add(self, key: K, event_id: str) -> None:
        self.found.setdefault(key, _Ids()).add(event_id)


class Outboxes(Check):
    """Finds events that are unsent for longer than `Limits.on_the_way`: one violation for each service."""

    name = OUTBOX
    needs = _PUBLISHERS
    about = frozenset({About.EVENTS})

    def __init__(self, limits: Limits) -> None:
        super().__init__(limits)
        self._events = self._unsent = 0
        self._stuck: dict[str, tuple[int, datetime]] = {}

    def look(self, part: Snapshot) -> None:
        self._events += part.event_count
        for event in part.outgoing:
            if event.sent:
                continue
            self._unsent += 1
            if not part.is_younger(event.create_time, self.limits.on_the_way):
                count, since = self._stuck.get(event.source, (0, event.create_time))
                self._stuck[event.source] = count + 1, min(since, event.create_time)

    def looked_at(self) -> str:
        return f"{self._events} events, {self._unsent} of them unsent"

    def at_last(self) -> Iterator[Violation]:
        for source, (count, since) in self._stuck.items():
            yield Violation(
                OUTBOX,
                source,
                f"{count} events are unsent, some since {since:%H:%M:%S} UTC",
                "Is the broker up (make status)? If it is, restart the service: its relay is stuck.",
            )


class Inboxes(Check):
    """Of the services; what history took shows in its timeline."""

    name = INBOXES
    needs = _PUBLISHERS
    about = frozenset({About.EVENTS})

    def __init__(self, limits: Limits) -> None:
        super().__init__(limits)
        self._taken = 0
        self._late: _By[tuple[str, str]] = _By()

    def look(self, part: Snapshot) -> None:
        self._taken += sum(len(part.taken.get(queue, ())) for queue in SERVICES_LISTEN)
        for queue, event in missed(part, self.limits, SERVICES_LISTEN):
            if not part.is_younger(event.create_time, self.limits.on_the_way):
                self._late.add((queue, event.source), event.event_id)

    def looked_at(self) -> str:
        return f"{self._taken} events taken"

    def at_last(self) -> Iterator[Violation]:
        for (queue, source), ids in self._late.found.items():
            what = f"{ids.count} events of {source} have not been taken: {ids}"
            yield Violation(INBOXES, queue, what, untaken(queue, source))


class History(Check):
    """Finds events that the timeline lacks, and entries younger than `Limits.recorded` without an event."""

    name = HISTORY
    needs = (*_PUBLISHERS, "history_db")
    about = frozenset({About.EVENTS})

    def __init__(self, limits: Limits) -> None:
        super().__init__(limits)
        self._entries = 0
        self._missing: _By[tuple[str, str]] = _By()
        self._invented: _By[str] = _By()

    def look(self, part: Snapshot) -> None:
        self._entries += part.entry_count
        told = {entry.event_id for entry in part.told}
        for event in part.outgoing:
            if event.event_id not in told and not part.is_younger(event.create_time, self.limits.on_the_way):
                self._missing.add((event.source, event.routing_key), event.event_id)
        known = {event.event_id for event in part.outgoing}
        for entry in part.told:
            # Only of services whose outbox was read: a subscriber may publish what it likes.
            if entry.source not in part.outboxes or entry.event_id in known:
                continue
            if part.is_younger(entry.occur_time, self.limits.recorded):
                self._invented.add(entry.type, entry.event_id)

    def looked_at(self) -> str:
        return f"{self._entries} entries"

    def at_last(self) -> Iterator[Violation]:
        for (_, routing_key), ids in self._missing.found.items():
            what = f"{ids.count} events are not in the timeline: {ids}"
            remedy = (
                "Redrive it (make redrive QUEUE=history.timeline); else `make replay SERVICE=all`, "
                "then `make rebuild-history`."
            )
            yield Violation(HISTORY, routing_key, what, remedy)
        for kind, ids in self._invented.found.items():
            what = f"{ids.count} entries are of events that {kind.split('.')[1]} never wrote: {ids}"
            yield Violation(
                HISTORY, kind, what, "Was a database restored from a backup? Then the others are ahead."
            )


class DeadLetters(Check):
    """Counts the dead letters of each subscriber's queue; even one, however young, is a violation."""

    name = DEAD_LETTERS
    needs = ("amqp",)
    about = frozenset({About.REST})

    def __init__(self, limits: Limits) -> None:
        super().__init__(limits)
        self._counts: Counter[str] = Counter()

    def look(self, part: Snapshot) -> None:
        self._counts.update(letter.queue for letter in part.dead_letters)

    def looked_at(self) -> str:
        return f"{self._counts.total()} dead letters"

    def at_last(self) -> Iterator[Violation]:
        for queue, count in self._counts.items():
            yield Violation(
                DEAD_LETTERS,
                queue,
                f"{count} events could not be taken",
                "List them (make dead-letters), put the cause right, send them back (make redrive"
                " QUEUE=all).",
            )
