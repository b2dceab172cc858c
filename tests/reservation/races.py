"""Two sides that start together, or one a little before the other."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

# Seconds that the first side is ahead; negative for the second.
HEAD_STARTS = (0.2, 0.005, 0.002, 0.001, 0.0, 0.0, -0.001, -0.002, -0.005, -0.2)


async def race(
    first: Callable[[], Awaitable[Any]], second: Callable[[], Awaitable[Any]], head_start: float
) -> tuple[Any, Any]:
    """What each side came to: an answer or what it raised, the first side's first."""

    async def after(seconds: float, side: Callable[[], Awaitable[Any]]) -> Any:
        if seconds > 0:
            await asyncio.sleep(seconds)
        return await side()

    return await asyncio.gather(after(-head_start, first), after(head_start, second), return_exceptions=True)
