"""What can be set: what every service knows, and nothing more."""

from __future__ import annotations

from dinemesh.kit.settings import ServiceSettings


class Settings(ServiceSettings):
    """Settings of the restaurant service, DINEMESH_* in the environment."""
