"""What all tests share: real databases and a real broker."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

pytest_plugins = ["tests.support.postgres", "tests.support.broker"]


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """A test that runs a service's `main` here leaves no log of that service to the tests after it."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
