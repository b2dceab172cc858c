"""How a test expects a refusal of a use case."""

from __future__ import annotations

from collections.abc import Awaitable

import pytest

from dinemesh.kit.refusal import Refusal


async def refused(reason: str, work: Awaitable[object]) -> Refusal:
    """The refusal with which `work` ends; fails if there is none, or another one."""
    with pytest.raises(Refusal) as caught:
        await work
    assert caught.value.reason == reason, caught.value
    return caught.value
