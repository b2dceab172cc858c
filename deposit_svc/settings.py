"""What deposit needs to know to run."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from dinemesh.kit.settings import Seconds, ServiceSettings


class DepositSettings(ServiceSettings):
    """The settings of the deposit service."""

    provider: Literal["sandbox"] = "sandbox"
    """Which payment provider is behind the port."""
    sandbox_address: str = "127.0.0.1:8085"
    """host:port of the sandbox."""
    provider_timeout_ms: int = Field(default=2000, ge=1, le=60_000)
    """For each look-up, close and refund. Three of them fit well into settle_lease_seconds."""
    charge_timeout_ms: int = Field(default=7000, ge=1, le=60_000)
    """For a charge whose caller set no deadline; below stop_grace_seconds, so that a stop lets it finish."""
    charges_in_flight_limit: int = Field(default=400, ge=1)
    """Charges at once; beyond it new ones are refused before anything is recorded. Two pods take
    what six of reservation send."""
    pending_settle_seconds: Seconds = 12
    """Age at which an undecided charge is taken for abandoned by a crash: above every charge's time limit."""
    settle_interval_seconds: Seconds = Field(default=1, gt=0)
    """How often reconciling looks for what a crash or another pod left; it is woken for what happens here."""
    settle_at_once: int = Field(default=200, ge=2)
    """Charges and refunds that are at the provider at once while they are reconciled, three quarters of them
    of one kind: 100 refunds a second and more with a provider that takes one."""
    settle_lease_seconds: Seconds = Field(default=15, gt=0)
    """How long one pod's try keeps the others off: above three calls to the provider and their pauses."""

    @model_validator(mode="after")
    def _an_abandoned_charge_is_over(self) -> Self:
        if self.pending_settle_seconds * 1000 <= self.charge_timeout_ms:
            raise ValueError("DINEMESH_PENDING_SETTLE_SECONDS must be above DINEMESH_CHARGE_TIMEOUT_MS")
        return self
