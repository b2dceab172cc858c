"""What reservation needs to know to run. Times of one attempt, from the inside out: the charge, then its
deadline, then the hold."""

from __future__ import annotations

import ipaddress
from typing import Self

from pydantic import Field, field_validator, model_validator

from dinemesh.kit.settings import Seconds, ServiceSettings


class ReservationSettings(ServiceSettings):
    """The settings of the reservation service."""

    deposit_address: str = "127.0.0.1:8082"
    """host:port of deposit_svc, or of a proxy before it; or ip:port,ip:port of its instances, if nothing else
    chooses among them: charges then go in turn to those that are ready."""
    deposit_deadline_ms: int = Field(default=4000, ge=100, le=60_000)
    """Longest wait for a charge; a card network answers in one or two seconds."""
    least_time_ms: int = Field(default=500, ge=0, le=60_000)
    """A caller with less time left is refused before anything is begun."""
    answer_margin_ms: int = Field(default=150, ge=0, le=10_000)
    """Kept back of the caller's time, to record the outcome and answer."""
    retry_after_seconds: Seconds = 2
    """When a client is asked to come back after an attempt that failed by overload or unknown outcome."""
    attempt_deadline_seconds: Seconds = Field(default=10, gt=0)
    """An attempt older than this has lost its process; the reconciling task looks at it."""
    hold_expire_seconds: Seconds = Field(default=120, gt=0)
    """Seats are held this long for a deposit that is undecided: until deposit has reconciled it after a
    crash."""
    unmarked_seconds: int = Field(default=86_400, ge=0)
    """After the end of the service: when a reservation that nobody marked is completed and refunded."""
    horizon_days: int = Field(default=366, ge=1, le=3660)
    """How far ahead a table can be booked."""
    settle_interval_seconds: Seconds = Field(default=1, gt=0)
    """How often the reconciling task looks at deadlines."""
    lapse_share: float = Field(default=0.2, gt=0, le=1)
    """If more than this share of the bookings that are alive became due at once, as far as anybody watched,
    the database's clock is taken for wrong: none is ended before an operator says so. Declines and
    completions are counted each by themselves. Several times what becomes due in a minute's restart."""
    lapse_floor: int = Field(default=100, ge=0)
    """So many bookings end in any case, whatever their share: in a small house one evening may be all there
    is."""
    charges_at_once: int = Field(default=120, ge=1)
    """Charges in flight in this process: below what the proxy before deposit takes (128), which also serves
    health checks. With a card network's 1 s, as many bookings a second."""
    charge_queue_limit: int = Field(default=400, ge=0)
    """Attempts that may wait to be charged; beyond it a new one is refused. Some 2 s of work."""
    charge_queue_seconds: Seconds = 4
    """Longest wait to be charged. With the charge it stays below the edge's deadline of 10 s."""
    customer_attempts_limit: int = Field(default=4, ge=1)
    """Attempts of one customer in flight, waiting or being charged: 3 % of the places."""
    customer_held_seats_limit: int = Field(default=40, ge=1)
    """Seats that one customer's attempts in flight may hold together; one attempt alone may hold more."""
    unpaid_attempts_free: int = Field(default=3, ge=1, le=40)
    """Attempts of one customer that may come to nothing before the next one has to wait: a mistyped card or
    two."""
    unpaid_pause_seconds: Seconds = 15
    """How long a customer then waits, from the begin of the last attempt; twice as long with each further
    one."""
    unpaid_window_seconds: Seconds = Field(default=600, gt=0)
    """After this an attempt that came to nothing is forgotten; also the longest pause."""
    breaker_window_seconds: Seconds = Field(default=30, gt=0)
    """What the breaker looks back on: longer than five charges in a row that nobody answers (4 s each)."""
    breaker_window_calls: int = Field(default=20, ge=1)
    """The breaker looks back no further than this many answers of deposit, so that it notices within as many
    calls."""
    breaker_failures: int = Field(default=5, ge=1)
    """Failures of deposit itself within the window that open the breaker although deposit says that it is
    well; if it does not say so, one is enough."""
    breaker_customers: int = Field(default=3, ge=1)
    """The failures open the breaker only if so many customers saw them."""
    breaker_share: float = Field(default=0.5, gt=0, le=1)
    """The failures open the breaker only if they are this share or more of what was heard of deposit."""
    breaker_rest_seconds: Seconds = Field(default=1, gt=0)
    """First pause before deposit is asked for its health; doubles with every failed trial."""
    breaker_longest_rest_seconds: Seconds = Field(default=8, gt=0)
    """Longest pause: how long bookings may stay away after deposit is well again."""

    @field_validator("deposit_address")
    @classmethod
    def _instances_have_numbers(cls, value: str) -> str:
        hosts = [one.rpartition(":")[0].strip("[]") for one in value.split(",")]
        if len(hosts) > 1:
            try:
                versions = {ipaddress.ip_address(host).version for host in hosts}
            except ValueError:
                raise ValueError("several instances are named as ip:port,ip:port") from None
            if len(versions) > 1:
                raise ValueError("several instances have addresses of one kind, IPv4 or IPv6")
        return value

    @model_validator(mode="after")
    def _times_fit(self) -> Self:
        if self.deposit_deadline_ms / 1000 >= self.attempt_deadline_seconds:
            raise ValueError("deposit_deadline_ms must be below attempt_deadline_seconds")
        if self.attempt_deadline_seconds >= self.hold_expire_seconds:
            raise ValueError("attempt_deadline_seconds must be below hold_expire_seconds")
        if self.answer_margin_ms >= max(self.least_time_ms, 1):
            raise ValueError("answer_margin_ms must be below least_time_ms")
        return self
