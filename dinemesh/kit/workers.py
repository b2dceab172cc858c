"""Work that no caller waits for: loops that last as long as the process, tasks that outlive their caller."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from dinemesh.kit import telemetry
from dinemesh.kit.call import Call, current, new_correlation_id, working_on
from dinemesh.kit.refusal import Refusal

log = logging.getLogger(__name__)

T = TypeVar("T")

# Longer than what a worker may finish before it ends (a confirm of the broker, 10 s).
_CANCEL_AGAIN_SECONDS = 11.0

_RESTART_SECONDS = (1.0, 30.0)  # first and longest pause before a worker that failed runs again


class Worker(Protocol):
    """A loop of a service. It runs until it is cancelled, and leaves nothing half done when it is."""

    async def run(self) -> None:
        """Ends only when it is cancelled; `keep_running` runs one again that ends or fails otherwise."""
        ...


class Periodic:
    """Calls `turn` every `seconds`, at once after `wake()`. A failing turn is logged, counted, repeated."""

    def __init__(self, name: str, seconds: float, turn: Callable[[], Awaitable[None]]) -> None:
        self.name = name
        self._seconds = seconds
        self._turn = turn
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """Lets the next turn start now. Only from the event loop's thread."""
        self._woken.set()

    async def run(self) -> None:
        failures = 0
        while True:
            self._woken.clear()
            try:
                with working_on(Call(correlation_id=new_correlation_id(), method=self.name)):
                    await self._turn()
                failures = 0
            except Exception as error:
                failures += 1
                telemetry.WORKER_FAILURES.labels(self.name).inc()
                # One trace at the start of a run of failures: an outage of an hour must not fill the disk.
                log.error("a turn of %s failed: %r", self.name, error, exc_info=failures == 1)
            heed_cancellation()
            await self._pause()

    async def _pause(self) -> None:
        try:
            async with asyncio.timeout(self._seconds):
                await self._woken.wait()
        except TimeoutError:
            pass


async def keep_running(worker: Worker, name: str) -> None:
    """Runs a worker and starts it again if it fails or ends; ends only by cancellation."""
    pause, longest = _RESTART_SECONDS
    loop = asyncio.get_running_loop()
    while True:
        started = loop.time()
        try:
            with working_on(Call(correlation_id="", method=name)):
                await worker.run()
            log.error("the worker %s ended by itself", name)
        except Exception:
            log.exception("the worker %s failed", name)
        heed_cancellation()
        telemetry.WORKER_FAILURES.labels(name).inc()
        if loop.time() - started > longest:
            pause = _RESTART_SECONDS[0]
        await asyncio.sleep(pause)
        pause = min(pause * 2, longest)


async def cancel(task: asyncio.Task[Any]) -> None:
    """Ends a task. Asks again while it goes on: before Python 3.12 `asyncio.wait_for`, which libraries use,
    can lose a cancellation that comes together with its result."""
    while not task.done():
        task.cancel()
        await asyncio.wait((task,), timeout=_CANCEL_AGAIN_SECONDS)
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("%s failed while it was stopped", task.get_name(), exc_info=error)


def heed_cancellation() -> None:
    """Ends a task that was cancelled and did not notice: what a library raised or returned at that moment
    came in between. For loops, which would go on for ever."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


async def together(*coros: Coroutine[Any, Any, None]) -> None:
    """Runs all of them until one fails or the caller is cancelled, and ends the others. Unlike a TaskGroup it
    asks again who goes on."""
    tasks = [asyncio.ensure_future(one) for one in coros]
    try:
        await asyncio.gather(*tasks)
    finally:
        await asyncio.gather(*(cancel(one) for one in tasks if not one.done()))


async def to_its_end(work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is not broken off when its caller is cancelled: the caller waits for it."""
    task = asyncio.ensure_future(work)
    try:
        result = await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.gather(task, return_exceptions=True)
        raise
    return result


class Background:
    """Tasks that must finish whatever becomes of their caller.

    grpc.aio cancels a handler at its next await when the caller's deadline passes or the caller hangs up.
    What may not stop halfway runs here: referenced until done, and awaited at shutdown.
    """

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def start(self, coro: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """Runs `coro` on its own, without the caller's deadline. A failure is logged."""
        context = contextvars.copy_context()
        context.run(_drop_deadline)
        task = self._launch(coro, name, context)
        task.add_done_callback(_log_failure)
        return task

    async def finish(self, coro: Coroutine[Any, Any, T], name: str = "work of a call") -> T:
        """The result of `coro`, which runs to its end even if the caller is cancelled meanwhile."""
        task = self._launch(coro, name, contextvars.copy_context())
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            # Nobody will see how it ends, so a failure must be told by the log.
            task.add_done_callback(_log_failure)
            raise

    async def drain(self, timeout: float) -> None:
        """Waits until all is done, also what starts meanwhile; cancels what is left after `timeout`."""
        end = asyncio.get_running_loop().time() + timeout
        while self._tasks:
            left = end - asyncio.get_running_loop().time()
            if left <= 0:
                break
            await asyncio.wait(self._tasks, timeout=left)
        unfinished = list(self._tasks)
        for task in unfinished:
            log.error("stopped before it was done: %s", task.get_name())
        await asyncio.gather(*map(cancel, unfinished))

    def _launch(
        self, coro: Coroutine[Any, Any, T], name: str, context: contextvars.Context
    ) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(coro, name=name, context=context)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _drop_deadline() -> None:
    current.set(replace(current.get(), deadline=None))


def _log_failure(task: asyncio.Task[Any]) -> None:
    if task.cancelled():
        return
    error = task.exception()
    if error is not None and not isinstance(error, Refusal):
        log.error("the task %s failed", task.get_name(), exc_info=error)
