"""Loops that nothing ends, and tasks that outlive their caller."""

from __future__ import annotations

import asyncio

import pytest

from dinemesh.kit import call, telemetry, workers
from dinemesh.kit.refusal import Refusal
from dinemesh.kit.workers import Background, Periodic, keep_running
from tests.kit.serving import until


async def test_a_failing_turn_is_counted_and_the_next_one_comes() -> None:
    turns = 0

    async def turn() -> None:
        nonlocal turns
        turns += 1
        if turns < 3:
            raise RuntimeError("bad turn")

    failures = telemetry.WORKER_FAILURES.labels("failing")
    task = asyncio.create_task(Periodic("failing", 0.01, turn).run())
    await until(lambda: turns >= 4)
    task.cancel()
    assert failures._value.get() == 2


async def test_wake_lets_a_turn_come_at_once_also_during_a_turn() -> None:
    turns = asyncio.Queue[str]()
    periodic: Periodic

    async def turn() -> None:
        turns.put_nowait(call.current.get().correlation_id)
        if turns.qsize() == 1:
            periodic.wake()

    periodic = Periodic("woken", 3600, turn)
    task = asyncio.create_task(periodic.run())
    async with asyncio.timeout(10):
        first, second = await turns.get(), await turns.get()
        periodic.wake()
        await turns.get()
    task.cancel()
    assert first != second, "each turn has a correlation id of its own"


async def test_a_worker_that_fails_or_ends_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_RESTART_SECONDS", (0.001, 0.01))
    runs = 0

    class Fragile:
        async def run(self) -> None:
            nonlocal runs
            runs += 1
            if runs == 1:
                raise RuntimeError("broken")
            if runs > 2:
                await asyncio.Event().wait()

    task = asyncio.create_task(keep_running(Fragile(), "fragile"))
    await until(lambda: runs == 3)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_worker_that_does_not_notice_that_it_is_cancelled_ends_all_the_same() -> None:
    """As where a library turns it into the end of a connection that comes at the same moment."""
    rests = asyncio.Event()

    async def lose_it() -> None:
        rests.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise ConnectionError("the connection is gone") from None

    class Lossy:
        run = staticmethod(lose_it)

    async def bystander() -> None:
        await asyncio.Event().wait()

    for work in (
        keep_running(Lossy(), "lossy"),
        Periodic("lossy", 3600, lose_it).run(),
        workers.together(keep_running(Lossy(), "lossy"), bystander()),
    ):
        rests.clear()
        task = asyncio.create_task(work)
        await rests.wait()
        task.cancel()
        done, _ = await asyncio.wait((task,), timeout=5)
        assert done and task.cancelled()


async def test_shielded_work_finishes_after_its_caller_was_cancelled() -> None:
    background, go, done = Background(), asyncio.Event(), asyncio.Event()

    async def work() -> str:
        await go.wait()
        done.set()
        return "recorded"

    caller = asyncio.create_task(background.finish(work()))
    await until(lambda: len(background) == 1)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert not done.is_set()
    go.set()
    await background.drain(10)
    assert done.is_set()
    assert len(background) == 0


async def test_finish_hands_on_results_and_refusals() -> None:
    background = Background()

    async def answer() -> int:
        return 7

    async def refuse() -> None:
        raise Refusal("CARD_DECLINED", "no")

    assert await background.finish(answer()) == 7
    with pytest.raises(Refusal):
        await background.finish(refuse())


async def test_the_failure_of_abandoned_work_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    background, go = Background(), asyncio.Event()

    async def fail() -> None:
        await go.wait()
        raise RuntimeError("lost otherwise")

    caller = asyncio.create_task(background.finish(fail(), "charge"))
    await until(lambda: len(background) == 1)
    caller.cancel()
    await asyncio.gather(caller, return_exceptions=True)
    go.set()
    await background.drain(10)
    assert any("charge" in record.message and record.exc_info for record in caplog.records)


async def test_started_work_does_not_inherit_the_callers_deadline() -> None:
    background, seen = Background(), list[call.Call]()

    async def look() -> None:
        seen.append(call.current.get())

    with call.working_on(call.Call("order-7", deadline=0.0)):
        assert call.time_left() == 0
        background.start(look(), "look")
    await background.drain(10)
    assert (seen[0].correlation_id, seen[0].deadline) == ("order-7", None)


async def test_drain_waits_for_what_is_started_meanwhile_and_cancels_what_takes_too_long() -> None:
    background, second_done, cancelled = Background(), asyncio.Event(), asyncio.Event()

    async def second() -> None:
        second_done.set()

    async def first() -> None:
        background.start(second(), "second")

    background.start(first(), "first")
    await background.drain(10)
    assert second_done.is_set()

    async def endless() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    background.start(endless(), "endless")
    await background.drain(0.01)
    assert cancelled.is_set()


async def test_a_task_that_loses_its_first_cancellation_is_ended_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(workers, "_CANCEL_AGAIN_SECONDS", 0.01)
    lost = 0

    async def stubborn() -> None:
        nonlocal lost
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                lost += 1
                if lost > 1:
                    raise

    task = asyncio.ensure_future(stubborn())
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        await workers.cancel(task)
    assert task.cancelled() and lost == 2
