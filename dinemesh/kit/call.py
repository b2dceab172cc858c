"""The call that is being worked on: who asks, under which correlation id, and how much time is left."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

CUSTOMER = "customer"
STAFF = "staff"
OPERATOR = "operator"
SERVICE = "service"

CORRELATION_KEY = "x-correlation-id"
TRACEPARENT_KEY = "traceparent"
"""The metadata in which they travel."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who asks, by a checked token. `expires_at` (seconds since the epoch) ends a stream that outlives it."""

    subject: str
    role: str
    restaurant_id: str | None = None
    expires_at: float | None = field(default=None, compare=False)


ANONYMOUS = Identity(subject="", role="")


@dataclass(frozen=True, slots=True)
class Call:
    """What travels with the work of one request or event.

    `causation_id` is the event that caused this work ("" for a request); `traceparent` is W3C trace context;
    `method` is the RPC, the type of the event or the name of the worker; `deadline` is a reading of
    time.monotonic().
    """

    correlation_id: str
    causation_id: str = ""
    traceparent: str = ""
    identity: Identity = ANONYMOUS
    method: str = ""
    deadline: float | None = None


NO_CALL = Call(correlation_id="")
current: ContextVar[Call] = ContextVar("dinemesh_call", default=NO_CALL)


def new_correlation_id() -> str:
    """An id for work that came without one."""
    return str(uuid.uuid4())


@contextmanager
def working_on(call: Call) -> Iterator[Call]:
    """Makes `call` the current one inside the block."""
    before = current.set(call)
    try:
        yield call
    finally:
        current.reset(before)


def identity() -> Identity:
    """Who asks; ANONYMOUS outside a call and for a call without a token."""
    return current.get().identity


def time_left() -> float | None:
    """Seconds until the caller's deadline (0.0 when it has passed), or None when the caller set none."""
    deadline = current.get().deadline
    return None if deadline is None else max(0.0, deadline - time.monotonic())
