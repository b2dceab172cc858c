"""What waits for somebody or something: since when, how long it may, and what to do when that is over.

`make pending` lists what is late. The audit takes its check "pending" from here too, so that both mean the
same.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from dinemesh.kit.canaries import HEALED_SECONDS
from operations.broker import LISTENS
from operations.limits import Limits
from operations.rows import Outgoing, Reservation
from operations.snapshot import About, Reader, Snapshot, aggregate_of
from operations.text import indented

EACH_ONCE = frozenset({"restaurant.v1.slots_changed"})
"""Events that a newer one of their aggregate does not replace: each names the slots that changed."""
_SPARE = 1000
REFUND_FAILED = "REFUND FAILED"
CLOCK_HELD = "CLOCK HELD"
_RESTART = (
    "make logs SERVICE={0}; its reconciling task is stuck: make stop SERVICE={0}, then make start SERVICE={0}"
)
_PROVIDER = "make status: is the provider up? Deposit asks it again and again: make logs SERVICE=deposit"


@dataclass(frozen=True)
class BacklogItem:
    """One thing that is not at its end. `subject` is its id; `until` is when it should have gone on, None if
    only a person can end it and no time makes it right."""

    kind: str
    subject: str
    what: str
    since: datetime
    until: datetime | None
    remedy: str

    @property
    def limit(self) -> timedelta:
        """Returns the time from `since` to `until`, never negative; zero if only a person can end it."""
        return timedelta(0) if self.until is None else max(self.until - self.since, timedelta(0))

    def is_late(self, now: datetime) -> bool:
        """Returns True after `until`, and always if only a person can end it; `now` is aware UTC."""
        return self.until is None or now > self.until


ABOUT = frozenset({About.RESERVATIONS, About.EVENTS, About.REST})
"""The parts of a snapshot that something can wait in."""


def everything(snapshot: Snapshot, limits: Limits) -> Iterator[BacklogItem]:
    """All that waits, of each kind, in a part or a whole snapshot."""
    yield from bookings_and_money(snapshot, limits)
    yield from blocked(snapshot)
    yield from unsent(snapshot, limits)
    yield from unheard(snapshot, limits)
    yield from dead_letters(snapshot)


def bookings_and_money(snapshot: Snapshot, limits: Limits) -> Iterator[BacklogItem]:
    """Of reservation and deposit."""
    yield from _held(snapshot)
    yield from _failing(snapshot)
    yield from _reservations(snapshot, limits)
    yield from _modifications(snapshot, limits)
    yield from _deposits(snapshot, limits)
    yield from _refunds(snapshot, limits)
    yield from _instructions(snapshot, limits)


def _held(snapshot: Snapshot) -> Iterator[BacklogItem]:
    held = snapshot.held
    if held is None or About.REST not in snapshot.about:
        return  # other parts only have to know of it
    trusted = "" if held.trusted_time is None else f", and is trusted until {_time(held.trusted_time)}"
    what = (
        f"{held.held_count} of {held.alive_count} bookings would end at once, so none does: the clock of"
        f" reservation's database said {_time(held.held_time)}{trusted}"
    )
    until = held.held_time.isoformat().replace("+00:00", "Z")
    remedy = (
        "was it ever so late? If not, put that clock right, and they go on by themselves. If it was, after a"
        f" long outage say, let them end: make let-lapse UNTIL={until}"
    )
    yield BacklogItem(CLOCK_HELD, "reservation", what, held.held_time, None, remedy)


def _failing(snapshot: Snapshot) -> Iterator[BacklogItem]:
    for one in snapshot.failing:
        what = f"{one.service} fails at it ({one.tries} times, again at {_time(one.next_time)}): {one.error}"
        remedy = (
            f"put right what make logs SERVICE={one.service} complains of (a row changed by hand, a bug); it"
            " is tried again by itself, at least every five minutes"
        )
        yield BacklogItem("FAILING", one.subject, what, one.since_time, one.since_time, remedy)


def _reservations(snapshot: Snapshot, limits: Limits) -> Iterator[BacklogItem]:
    """The limits are taken from what was agreed (the meal, the hold): `due_time` is only reservation's note
    of when to look, and may be wrong."""
    restart = _RESTART.format("reservation")
    for one in snapshot.reservations.values():
        if one.state == "PENDING_DEPOSIT":
            until = one.hold_expire_time
            what = f"its seats are held until {until:%H:%M:%S} UTC"
        elif one.state == "PENDING_ACCEPTANCE":
            until = min(one.accept_deadline or one.dine_time, one.dine_time)
            what = f"the restaurant had time to accept it until {_time(until)}"
        elif one.state in ("CONFIRMED", "SEATED"):
            latest = one.service_end + limits.unmarked
            until = min(one.due_time or latest, latest)
            what = f"nobody said how it went; it ends by itself at {_time(until)}"
        else:
            continue
        if one.state != "PENDING_DEPOSIT" and _is_held(snapshot, one):
            continue  # it is among those that are listed together
        until += limits.on_the_way
        if one.due_time is None or (one.state == "PENDING_ACCEPTANCE" and one.accept_deadline is None):
            what, until = "its clock is not set: it would never end by itself", one.update_time
        yield BacklogItem(one.state, one.reservation_id, what, one.update_time, until, restart)


def _is_held(snapshot: Snapshot, one: Reservation) -> bool:
    held = snapshot.held
    if held is None or one.due_time is None:
        return False
    return held.trusted_time is None or one.due_time > held.trusted_time


def _time(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def _modifications(snapshot: Snapshot, limits: Limits) -> Iterator[BacklogItem]:
    for one in snapshot.modifications:
        what = f"extra seats of {one.reservation_id} are held until {one.hold_expire_time:%H:%M:%S} UTC"
        until = one.hold_expire_time + limits.on_the_way
        # When it began is not on record; its own attempt was to be over by then.
        since, restart = min(one.attempt_deadline, one.hold_expire_time), _RESTART.format("reservation")
        yield BacklogItem("MODIFYING", one.modification_id, what, since, until, restart)


def _deposits(snapshot: Snapshot, limits: Limits) -> Iterator[BacklogItem]:
    for one in snapshot.deposits.values():
        if one.state in ("PENDING", "VOIDING"):
            what = f"whether it was charged for {one.reservation_id} is not known"
            until = one.update_time + limits.undecided
            kind = f"DEPOSIT {one.state}"
            yield BacklogItem(kind, one.deposit_id, what, one.update_time, until, _PROVIDER)


def _refunds(snapshot: Snapshot, limits: Limits) -> Iterator[BacklogItem]:
    for one in snapshot.refunds:
        amount = snapshot.deposits[one.deposit_id].money(one.amount_minor)
        since = one.update_time
        if one.state == "FAILED":
            what = f"{amount} of {one.deposit_id} refused by the provider ({one.failure_code})"
            remedy = (
                f"put right what the provider complains of, then: make retry-refund DEPOSIT={one.deposit_id}"
            )
            yield BacklogItem(REFUND_FAILED, one.refund_id, what, since, None, remedy)
        elif one.state == "PENDING":
            what = f"{amount} of {one.deposit_id} are on their way back"
            yield BacklogItem(
                "REFUND PENDING", one.refund_id, what, since, since + limits.undecided, _PROVIDER
            )


def _instructions(snapshot: Snapshot, limits: Limits) -> Iterator[BacklogItem]:
    for one in snapshot.applied:
        if one.state == "WAITING":
            what = (
                f"the {one.kind.lower()} of {one.deposit_id} waits until it is known whether it was charged"
            )
            until = one.create_time + limits.undecided + limits.on_the_way
            remedy = f"is that deposit listed too? If not: {_RESTART.format('deposit')}"
            yield BacklogItem("INSTRUCTION", one.instruction_id, what, one.create_time, until, remedy)


def blocked(snapshot: Snapshot) -> Iterator[BacklogItem]:
    """A broker that takes no messages."""
    if snapshot.broker_blocks:
        what = "rabbitmq is short of memory or disk and takes no messages from anybody"
        remedy = (
            "free disk, or memory of its machine (make logs SERVICE=rabbitmq: which alarm is set?);"
            " then all that is unsent follows by itself"
        )
        yield BacklogItem("BROKER BLOCKS", "rabbitmq", what, snapshot.now, None, remedy)


def unsent(snapshot: Snapshot, limits: Limits) -> Iterator[BacklogItem]:
    """Events that no broker has, or that one of its queues refuses."""
    for event in snapshot.outgoing:
        if not event.sent:
            what = f"{event.routing_key} of {event.source} is not published"
            remedy = (
                "make status: is rabbitmq ready? If it is, the relay is stuck:"
                f" make stop SERVICE={event.source}, then make start SERVICE={event.source}"
            )
            if event.tries:
                what = f"{event.routing_key} of {event.source} was refused {event.tries} times by the broker"
                remedy = (
                    "the subscribers of the mesh have it, unless they are listed too. Some other queue"
                    " bound to dinemesh.events is full and refuses it: have its owner empty or delete it"
                    " (rabbitmqctl list_queues name messages arguments); the event follows within a minute"
                )
            until = event.create_time + limits.on_the_way
            yield BacklogItem("EVENT UNSENT", event.event_id, what, event.create_time, until, remedy)


def unheard(snapshot: Snapshot, limits: Limits) -> Iterator[BacklogItem]:
    """Events published within the retention that a subscriber has neither taken nor refused."""
    for queue, event in missed(snapshot, limits, LISTENS):
        until = event.create_time + limits.on_the_way
        what = f"{event.routing_key} has not been taken by {queue}"
        remedy = untaken(queue, event.source)
        yield BacklogItem("EVENT UNHEARD", event.event_id, what, event.create_time, until, remedy)


def untaken(queue: str, source: str) -> str:
    """What to do about events of a service that a subscriber has not taken."""
    service = queue.partition(".")[0]
    return (
        f"make status: is {service} ready? A binding that was lost is mended within"
        f" {HEALED_SECONDS:g} s, and what was missed is taken then: wait so long. If it is listed"
        f" still: make stop SERVICE={service}, make start SERVICE={service}, then"
        f" make replay SERVICE={source}"
    )


def missed(snapshot: Snapshot, limits: Limits, queues: Iterable[str]) -> Iterator[tuple[str, Outgoing]]:
    """Of these subscribers, each with an event, the oldest first. One whose inbox was not looked at misses
    nothing that we know of."""
    dead = {(letter.queue, letter.event_id) for letter in snapshot.dead_letters}
    told = {entry.event_id for entry in snapshot.told}
    sent: dict[str, dict[str, Outgoing]] = defaultdict(dict)
    for event in snapshot.outgoing:
        if event.sent and snapshot.is_younger(event.create_time, limits.recorded):
            sent[event.source][event.event_id] = event
    for queue in queues:
        taken = snapshot.taken.get(queue)
        if taken is None:
            continue
        effects = told if queue.startswith("history.") else frozenset[str]()
        for events in (sent[source] for source in LISTENS[queue]):
            # As sets: what is not missed, nearly all, costs little.
            for event_id in sorted(events.keys() - taken - effects):
                event = events[event_id]
                if (queue, event_id) not in dead and not _is_replaced(snapshot, queue, event):
                    yield queue, event


def _is_replaced(snapshot: Snapshot, queue: str, event: Outgoing) -> bool:
    """Each event carries the whole state of its aggregate: who has taken a newer one has its effect."""
    if event.routing_key in EACH_ONCE:
        return False
    return snapshot.versions.get((queue, aggregate_of(event)), -1) >= event.aggregate_version


def dead_letters(snapshot: Snapshot) -> Iterator[BacklogItem]:
    """Yields an item for each dead letter, late from the start since only a person can redrive it."""
    if About.REST not in snapshot.about:
        return  # other parts only have to know of them
    for letter in snapshot.dead_letters:
        kind = letter.type or f"an unreadable message of {letter.size_bytes} bytes"
        what = f"{kind} could not be taken by {letter.queue} ({letter.reason})"
        service = letter.queue.partition(".")[0]
        remedy = f"put right what make logs SERVICE={service} complains of: make redrive QUEUE={letter.queue}"
        since = letter.since or snapshot.now
        yield BacklogItem("DEAD LETTER", letter.event_id or "-", what, since, None, remedy)


def listed(reader: Reader, limits: Limits, most: int) -> Listing:
    """All that waits, read in parts. Blocks. Raises Unreadable."""
    listing = Listing(reader.now, most)
    for part in reader.parts(ABOUT, waiting=True):
        listing.add(everything(part, limits))
    return listing


class Listing:
    """What is late, for a person: kind by kind, the oldest first, `most` of each kind; the others are
    counted."""

    def __init__(self, now: datetime, most: int) -> None:
        self._now = now
        self._most = most
        self._late: dict[str, list[BacklogItem]] = {}
        self._counts: Counter[str] = Counter()
        self._on_time = 0

    @property
    def is_empty(self) -> bool:
        """Nothing is late."""
        return not self._counts

    def add(self, found: Iterable[BacklogItem]) -> None:
        """Counts every item and keeps the oldest late ones of each kind, so that memory stays bounded."""
        for one in found:
            if not one.is_late(self._now):
                self._on_time += 1
                continue
            self._counts[one.kind] += 1
            kept = self._late.setdefault(one.kind, [])
            kept.append(one)
            if len(kept) > 2 * self._most + _SPARE:
                self._keep_oldest(kept)

    def _keep_oldest(self, kept: list[BacklogItem]) -> None:
        kept.sort(key=lambda one: one.since)
        del kept[self._most :]

    def __str__(self) -> str:
        lines: list[str] = []
        for kind, count in sorted(self._counts.items()):
            kept = self._late[kind]
            self._keep_oldest(kept)
            for one in kept:
                lines += [
                    f"{kind}  {one.subject}  since {one.since:%Y-%m-%d %H:%M:%S} UTC,"
                    f" limit {one.limit.total_seconds():.0f} s",
                    *indented(one.what, "  what: "),
                    *indented(one.remedy, "  do:   "),
                    "",
                ]
            if count > len(kept):
                lines += [f"{kind}  and {count - len(kept)} more", ""]
        said = ", ".join(f"{count} {kind}" for kind, count in sorted(self._counts.items())) or "nothing"
        return "\n".join([*lines, f"pending: late: {said}; {self._on_time} wait within their time"])
