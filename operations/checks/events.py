"""No event is stuck: outboxes are empty or young, every subscriber has taken every one, history has it, and
nothing lies dead."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator

from operations.broker import LISTENS
from operations.limits import Limits
from operations.picture import Outgoing, Picture
from operations.report import Finding, Violation
from operations.waiting import Waiting, unheard

OUTBOX, INBOXES, HISTORY, DEAD_LETTERS = "outbox", "inboxes", "history", "dead letters"
# One line a service or type, however many events: the ids of the first few are enough to look closer.
_SHOWN = 3
SERVICES_LISTEN = [queue for queue in LISTENS if not queue.startswith("history.")]


def outboxes(picture: Picture, limits: Limits) -> Finding:
    stuck: dict[str, list[Outgoing]] = defaultdict(list)
    unsent = 0
    for event in picture.outgoing:
        unsent += not event.sent
        if not event.sent and not picture.is_younger(event.create_time, limits.on_the_way):
            stuck[event.source].append(event)
    violations = tuple(
        Violation(
            OUTBOX,
            source,
            f"{len(events)} events are unsent, some since {min(e.create_time for e in events):%H:%M:%S} UTC",
            "Is the broker up (make status)? If it is, restart the service: its relay is stuck.",
        )
        for source, events in stuck.items()
    )
    return Finding(OUTBOX, f"{len(picture.outgoing)} events, {unsent} of them unsent", violations)


def inboxes(picture: Picture, limits: Limits) -> Finding:
    """Of the services; what history took shows in its timeline."""
    late: dict[str, list[Waiting]] = defaultdict(list)
    for queue in SERVICES_LISTEN:
        late[queue] = [one for one in unheard(picture, limits, [queue]) if one.is_late(picture.now)]
    violations = tuple(
        Violation(
            INBOXES,
            queue,
            f"{len(found)} events have not been taken: {_some([one.subject for one in found])}",
            found[0].remedy,
        )
        for queue, found in late.items()
        if found
    )
    taken = sum(len(events) for queue, events in picture.taken.items() if queue in SERVICES_LISTEN)
    return Finding(INBOXES, f"{taken} events taken", violations)


def history(picture: Picture, limits: Limits) -> Finding:
    violations = (*_missing(picture, limits), *_invented(picture))
    return Finding(HISTORY, f"{len(picture.told)} entries", violations)


def _missing(picture: Picture, limits: Limits) -> Iterator[Violation]:
    told = {entry.event_id for entry in picture.told}
    missing: dict[tuple[str, str], list[str]] = defaultdict(list)
    for event in picture.outgoing:
        if event.event_id not in told and not picture.is_younger(event.create_time, limits.on_the_way):
            missing[event.source, event.routing_key].append(event.event_id)
    for (_, routing_key), events in missing.items():
        what = f"{len(events)} events are not in the timeline: {_some(events)}"
        remedy = (
            "Redrive it (make redrive QUEUE=history.timeline); else `make replay SERVICE=all`, "
            "then `make rebuild-history`."
        )
        yield Violation(HISTORY, routing_key, what, remedy)


def _invented(picture: Picture) -> Iterator[Violation]:
    """Only of services whose outbox was read: a guest may publish what it likes."""
    sources = {event.source for event in picture.outgoing}
    known = {event.event_id for event in picture.outgoing}
    invented: dict[str, list[str]] = defaultdict(list)
    for entry in picture.told:
        if entry.source in sources and entry.event_id not in known:
            invented[entry.type].append(entry.event_id)
    for kind, events in invented.items():
        what = f"{len(events)} entries are of events that {kind.split('.')[1]} never wrote: {_some(events)}"
        yield Violation(
            HISTORY, kind, what, "Was a database restored from a backup? Then the others are ahead."
        )


def dead_letters(picture: Picture, limits: Limits) -> Finding:
    counts = Counter(letter.queue for letter in picture.dead_letters)
    violations = tuple(
        Violation(
            DEAD_LETTERS,
            queue,
            f"{count} events could not be taken",
            "List them (make dead-letters), put the cause right, send them back (make redrive QUEUE=all).",
        )
        for queue, count in counts.items()
    )
    return Finding(DEAD_LETTERS, f"{len(picture.dead_letters)} dead letters", violations)


def _some(events: list[str]) -> str:
    more = ", ..." if len(events) > _SHOWN else ""
    return ", ".join(sorted(events)[:_SHOWN]) + more
