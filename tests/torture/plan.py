"""What a run does, out of its seed alone: the stories that clients live through, and the faults.

Both are endless sequences. A run takes from them for as long as it lasts, so a longer run of the same seed
begins like a shorter one, and a slow machine makes the same choices as a fast one, only fewer.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

T = TypeVar("T")

PROCESSES = ("reservation", "deposit", "restaurant", "history", "sandbox")
QUEUES = (
    "reservation.restaurants",
    "reservation.deposits",
    "deposit.instructions",
    "restaurant.bookings",
    "history.timeline",
)
OUTBOXES = ("reservation", "deposit", "restaurant")
DATABASES = ("reservation", "deposit", "restaurant", "history")
CLOCKS = ("reservation", "deposit", "restaurant")
"""The databases by whose clock something is ended or repeated."""
EXCHANGES = ("dinemesh.events", "dinemesh.events", "exchange of dead letters")
"""The first twice: nearly everything goes through it."""


class Tale(StrEnum):
    """What one customer, and sometimes the restaurant, do with one wish."""

    BOOK = "book"
    CANCEL = "cancel"
    CANCEL_AT_ONCE = "cancel, three at once"
    REPEAT = "repeat, three at once"
    HANG_UP = "hang up and repeat"
    BAD_CARD = "bad card"
    HOPELESS = "card that never works"
    SLOW_CARD = "slow card"
    REFUND_FAILS = "refund fails"
    CHEAPER = "modify cheaper"
    DEARER = "modify dearer"
    DEARER_BAD_CARD = "modify dearer with a bad card"
    ACCEPT = "accept"
    DECLINE = "decline"
    DECLINE_LATER = "decline after accepting"
    LAPSE = "let it lapse"
    SEAT = "seat and complete"
    NO_SHOW = "no-show"
    # Races: `early` says which side is given the start.
    CANCEL_OR_ACCEPT = "cancel against accept"
    CANCEL_OR_CHARGE = "cancel against charge"
    CANCEL_OR_NO_SHOW = "late cancel against no-show"
    CANCEL_OR_WINDOW = "cancel around the end of free cancellation"
    ACCEPT_OR_DEADLINE = "accept around the deadline"
    MODIFY_OR_CANCEL = "modify against cancel"
    LAST_SEAT = "the last seat"


RACES = (
    Tale.CANCEL_OR_ACCEPT,
    Tale.CANCEL_OR_CHARGE,
    Tale.CANCEL_OR_NO_SHOW,
    Tale.CANCEL_OR_WINDOW,
    Tale.ACCEPT_OR_DEADLINE,
    Tale.MODIFY_OR_CANCEL,
    Tale.LAST_SEAT,
)


@dataclass(frozen=True)
class Story:
    """`chance`: seeds whatever else is chosen while it is told. `early`: in a race, who gets the start."""

    number: int
    tale: Tale
    party: int
    slot: int
    card: str
    chance: int
    early: bool

    @property
    def customer(self) -> str:
        return f"customer-{self.number}"


class Fault(StrEnum):
    KILL = "kill -9"
    PAUSE = "SIGSTOP"
    KILL_BROKER = "kill -9 of RabbitMQ"
    DELAY = "events delayed"
    REORDER = "events reordered"
    DUPLICATE = "events duplicated"
    REPLAY = "outbox published again"
    OVERLOAD = "deposit refuses"
    READ_ONLY = "database read-only"
    FULL_DISK = "disk full"
    HELD_LOCK = "database locked by another"
    CLOCK_JUMP = "clock ahead"
    BINDING_LOST = "binding lost"
    EXCHANGE_LOST = "exchange lost"
    QUEUE_FULL = "foreign queue full"
    KILL_NODE = "kill -9 of a broker node"


DISK_FAULTS = frozenset({Fault.READ_ONLY, Fault.FULL_DISK})
DATABASE_FAULTS = DISK_FAULTS | {Fault.HELD_LOCK, Fault.CLOCK_JUMP}
_SAY_WHOSE = DATABASE_FAULTS | {Fault.KILL, Fault.PAUSE, Fault.EXCHANGE_LOST}


@dataclass(frozen=True)
class Blow:
    """A fault to come: of which process, database, queue, exchange or outbox; after and for how many
    seconds."""

    fault: Fault
    target: str
    after: float
    seconds: float
    chance: int

    @property
    def kind(self) -> str:
        return f"{self.fault} of {self.target}" if self.fault in _SAY_WHOSE else str(self.fault)


_GOOD = ("tok_visa", "tok_visa", "tok_visa", "tok_slow_200")
_HOPELESS = ("tok_unavailable", "tok_lostReply", "tok_slow_3000")
_BAD = ("tok_chargeDeclined", "tok_chargeDeclinedInsufficientFunds")
_OFTEN = (Tale.BOOK, Tale.CANCEL, Tale.REPEAT, Tale.DEARER, Tale.ACCEPT)


def stories(seed: int) -> Iterator[Story]:
    """Round after round of all tales, shuffled; a race twice in each, once for either side, and early on."""
    deal = random.Random(f"{seed} stories")
    numbers = itertools.count()
    while True:
        races = [(race, early) for race in RACES for early in (True, False)]
        others = [(tale, True) for tale in (*Tale, *_OFTEN) if tale not in RACES]
        deal.shuffle(races)
        deal.shuffle(others)
        for tale, early in _in_turn(races, others):
            cards = {Tale.BAD_CARD: _BAD, Tale.HOPELESS: _HOPELESS}.get(tale, _GOOD)
            yield Story(
                next(numbers),
                tale,
                deal.randint(2, 4),
                deal.randrange(3),
                deal.choice(cards),
                deal.getrandbits(32),
                early,
            )


def _in_turn(some: Sequence[T], others: Sequence[T]) -> Iterator[T]:
    for pair in itertools.zip_longest(some, others):
        yield from (one for one in pair if one is not None)


def blows_to_processes(seed: int) -> Iterator[Blow]:
    """Each process killed twice and stopped once a round."""
    deal = random.Random(f"{seed} processes")
    while True:
        deck = [(Fault.KILL, name) for name in (*PROCESSES, *PROCESSES)]
        deck += [(Fault.PAUSE, name) for name in PROCESSES]
        yield from _dealt(deal, deck)


def blows_to_events(seed: int) -> Iterator[Blow]:
    """The broker, its deliveries, and a deposit that refuses."""
    deal = random.Random(f"{seed} events")
    while True:
        deck = [(Fault.KILL_BROKER, "rabbitmq"), (Fault.OVERLOAD, "deposit")]
        deck += [(fault, deal.choice(QUEUES)) for fault in (Fault.DELAY, Fault.REORDER, Fault.DUPLICATE)]
        deck.append((Fault.REPLAY, deal.choice(OUTBOXES)))
        yield from _dealt(deal, deck)


def blows_to_databases(seed: int) -> Iterator[Blow]:
    """Each fault once a round, of one database."""
    deal = random.Random(f"{seed} databases")
    while True:
        deck = [(fault, deal.choice(DATABASES)) for fault in (*sorted(DISK_FAULTS), Fault.HELD_LOCK)]
        deck.append((Fault.CLOCK_JUMP, deal.choice(CLOCKS)))
        yield from _dealt(deal, deck)


def blows_to_topology(seed: int) -> Iterator[Blow]:
    """What is taken from the broker, or put beside it, while it runs. A node: the one that leads a queue."""
    deal = random.Random(f"{seed} topology")
    while True:
        deck = [
            (Fault.BINDING_LOST, deal.choice(QUEUES)),
            (Fault.EXCHANGE_LOST, deal.choice(EXCHANGES)),
            (Fault.QUEUE_FULL, "torture.subscriber"),
            (Fault.KILL_NODE, deal.choice(QUEUES)),
        ]
        yield from _dealt(deal, deck)


LANES: tuple[Callable[[int], Iterator[Blow]], ...] = (
    blows_to_processes,
    blows_to_events,
    blows_to_databases,
    blows_to_topology,
)
"""Each by itself goes on from one blow to the next; all at once."""


def lanes(seed: int, faults: Collection[Fault]) -> list[Iterator[Blow]]:
    """The sequences of a seed with these faults alone; a lane that has none of them is left out."""
    return [
        (blow for blow in lane(seed) if blow.fault in faults)
        for lane in LANES
        if any(blow.fault in faults for blow in itertools.islice(lane(seed), 20))
    ]


def _dealt(deal: random.Random, deck: Sequence[tuple[Fault, str]]) -> Iterator[Blow]:
    for fault, target in deal.sample(deck, len(deck)):
        after, seconds = deal.uniform(0.2, 1.5), deal.uniform(0.2, 3.0)
        yield Blow(fault, target, round(after, 2), round(seconds, 2), deal.getrandbits(32))


def digest(seed: int, most: int = 1000) -> str:
    """A short name of the choices: equal for runs that choose the same."""
    chosen = hashlib.sha256()
    for sequence in (stories(seed), *(lane(seed) for lane in LANES)):
        for one in itertools.islice(sequence, most):
            chosen.update(repr(one).encode())
    return chosen.hexdigest()[:12]
