"""What history needs to know to run: nothing beyond what every service does."""

from __future__ import annotations

from dinemesh.kit.settings import ServiceSettings


class HistorySettings(ServiceSettings):
    """The settings of the history service."""
