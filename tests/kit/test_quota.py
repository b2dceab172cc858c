"""What one key may cost, and that it costs the others nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from dinemesh.kit import quota as kit
from dinemesh.kit.quota import Quota
from dinemesh.kit.refusal import Refusal


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


async def spend(quota: Quota, key: str, units: float) -> None:
    async with quota.turn(key) as turn:
        turn.pay(units)


async def refused(quota: Quota, key: str) -> Refusal:
    with pytest.raises(Refusal) as caught:
        await spend(quota, key, 1)
    assert caught.value.reason == "TRY_AGAIN_LATER"
    return caught.value


async def test_a_large_call_is_possible_at_any_time_and_paid_for_by_a_pause(clock: Clock) -> None:
    quota = Quota(at_once=1, per_second=10, burst=100, clock=clock)
    await spend(quota, "a", 99)
    await spend(quota, "a", 500)
    wait = (await refused(quota, "a")).retry_after
    assert wait is not None and 50 <= wait <= 50 * 1.25
    await spend(quota, "b", 1)
    clock.now += wait
    await spend(quota, "a", 1)


async def test_who_waits_behind_a_large_call_is_let_in_when_that_is_paid_for(clock: Clock) -> None:
    quota = Quota(at_once=3, per_second=10, burst=100, clock=clock)
    gate = asyncio.Event()

    async def large() -> None:
        async with quota.turn("a") as turn:
            await gate.wait()
            turn.pay(1000)

    waiting = [asyncio.create_task(large()) for _ in range(3)]
    await asyncio.sleep(0)
    gate.set()
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(one) for one in outcomes] == [type(None), Refusal, Refusal]


async def test_a_pause_saves_no_more_than_the_bucket_holds(clock: Clock) -> None:
    quota = Quota(at_once=1, per_second=10, burst=100, clock=clock)
    await spend(quota, "a", 1)
    clock.now += 10_000
    await spend(quota, "a", 100)
    await refused(quota, "a")


async def test_who_is_told_to_come_back_is_let_in_then(clock: Clock) -> None:
    for units in (1.0, 1.5, 7.0, 1234.0):
        quota = Quota(at_once=1, per_second=3, burst=1, clock=clock)
        await spend(quota, "a", units)
        wait = (await refused(quota, "a")).retry_after
        assert wait is not None
        clock.now += wait
        await spend(quota, "a", 1)


@pytest.mark.parametrize("leave", [lambda task: None, lambda task: task.cancel()], ids=["ends", "cancelled"])
async def test_a_turn_that_is_over_however_it_ends_makes_room(
    leave: Callable[[asyncio.Task[None]], object],
) -> None:
    quota = Quota(at_once=2, per_second=1e9, burst=1e9)
    gate, inside, most = asyncio.Event(), 0, 0

    async def work() -> None:
        nonlocal inside, most
        async with quota.turn("a"):
            inside += 1
            most = max(most, inside)
            try:
                await gate.wait()
            finally:
                inside -= 1

    tasks = [asyncio.create_task(work()) for _ in range(2)]
    await asyncio.sleep(0)
    await refused(quota, "a")
    await spend(quota, "b", 1)
    for task in tasks:
        leave(task)
    gate.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert most == 1, "two turns at once"
    await spend(quota, "a", 1)


async def test_keys_are_forgotten_when_they_owe_nothing(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kit, "_REMEMBERED", 10)
    quota = Quota(at_once=1, per_second=1, burst=100, clock=clock)
    await spend(quota, "in debt", 1000)
    for n in range(50):
        await spend(quota, f"key-{n}", 1)
        clock.now += 1
    assert len(quota._accounts) <= 11
    await refused(quota, "in debt")
