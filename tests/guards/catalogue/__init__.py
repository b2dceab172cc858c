"""All guards, by name, in the order of the promises."""

from __future__ import annotations

from collections.abc import Mapping

from tests.guards.catalogue import (
    away,
    bus,
    down,
    events,
    history,
    modifications,
    money,
    requests,
    restarts,
    seats,
    strangers,
    terms,
)
from tests.guards.guard import Guard

ROOMS = (money, modifications, requests, seats, events, bus, away, down, restarts, strangers, history, terms)

GUARDS: Mapping[str, Guard] = {guard.name: guard for room in ROOMS for guard in room.GUARDS}
"""By name. A name that is there twice would hide a guard: a test looks after that."""
