"""What can be set: what every service knows, and nothing more."""

from __future__ import annotations

from pydantic import Field

from dinemesh.kit.settings import ServiceSettings


class RestaurantSettings(ServiceSettings):
    """Settings of the restaurant service, DINEMESH_* in the environment."""

    changes_at_once: int = Field(default=4, ge=1)
    """Calls that change the slots or the policy of one restaurant, at work or waiting for their turn."""
    changes_per_second: float = Field(default=100, gt=0)
    """What one restaurant may change in the long run, in units: each call costs five, each slot that it names
    one, each event that it causes fifteen. Measured: 100 a second, five calls that change one slot each, take
    less than a twentieth of one core, of all services together."""
    changes_burst: float = Field(default=2000, ge=1)
    """What it may change at once, before the rate above holds: a month with sixty slots a day."""
