"""What all tests share: real databases, a real broker and a real browser."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator

import pytest

pytest_plugins = ["tests.support.postgres", "tests.support.broker", "tests.support.chromium"]


def pytest_configure() -> None:
    """A run that is told to end clears up like one that is interrupted: PostgreSQL would outlive us."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """A test that runs a service's `main` here leaves no log of that service to the tests after it."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
