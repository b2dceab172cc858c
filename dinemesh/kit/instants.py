"""Instants as whole microseconds since 1970-01-01 UTC: what columns, tokens and Timestamps hold.

Standard library only.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def to_micros(instant: datetime) -> int:
    """Of an aware datetime, whatever its zone."""
    return (instant - EPOCH) // _MICROSECOND


def from_micros(micros: int) -> datetime:
    """An aware UTC datetime. Raises OverflowError beyond the years 1 to 9999."""
    return EPOCH + timedelta(microseconds=micros)
