"""`--hypothesis-profile=torture` lets the machines play thirty times as often, and anew at every run."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from tests.machines import play  # noqa: F401  registers the profile


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """The services tell of every planted fault, thousands of times."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)
