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
    """An attempt older than this has lost its process; the settling task looks at it."""
    hold_expire_seconds: Seconds = Field(default=120, gt=0)
    """Seats are held this long for a deposit that is undecided: until deposit has settled it after a
    crash."""
    unmarked_seconds: int = Field(default=86_400, ge=0)
    """After the end of the service: when a reservation that nobody marked is completed and refunded."""
    horizon_days: int = Field(default=366, ge=1, le=3660)
    """How far ahead a table can be booked."""
    settle_interval_seconds: Seconds = Field(default=1, gt=0)
    """How often the settling task looks at deadlines."""
    attempts_limit: int = Field(default=200, ge=1)
    """Attempts in flight in this process; beyond it a new one is refused at the door."""
    breaker_threshold: int = Field(default=5, ge=1)
    """Unknown or overloaded outcomes in a row that open the breaker."""
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
