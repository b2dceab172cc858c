"""A process of a service without its doors: real use cases, real SQL, and a death that leaves nothing behind
but what was committed."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from dinemesh.kit.refusal import Refusal
from dinemesh.kit.store import CommitInDoubt, StoreUnavailable
from dinemesh.kit.workers import Background
from tests.machines.database import Fault, InlineStore, database
from tests.machines.loop import Loop

T = TypeVar("T")

START = datetime(2030, 1, 1, 12, tzinfo=UTC)

ORDINARY = (Refusal, CommitInDoubt, StoreUnavailable, asyncio.CancelledError)
"""How work may end without anything being wrong with the service."""


class Time:
    """The one clock: of the loop and of all databases."""

    def __init__(self) -> None:
        self.loop = Loop()

    @property
    def now(self) -> datetime:
        return START + timedelta(seconds=self.loop.time())

    def close(self) -> None:
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        self.loop.run()
        self.loop.close()


class Process:
    """`package` names the service. A new process on the same database is the restarted one."""

    def __init__(self, time: Time, package: str) -> None:
        self.time = time
        self.package = package
        self.background = Background()
        self.store = InlineStore(database(package), lambda: time.now, self.die)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._workers: set[asyncio.Task[Any]] = set()

    @property
    def is_dead(self) -> bool:
        return self.store.dead

    def begin(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Work that goes on until it has to wait for somebody."""
        task = self.time.loop.create_task(work)
        self._tasks.add(task)
        self.time.loop.run()
        self.check()
        return task

    def work(self, worker: Coroutine[Any, Any, None]) -> None:
        """A loop that lasts as long as the process."""
        self._workers.add(self.time.loop.create_task(worker))

    def do(self, work: Coroutine[Any, Any, T], *, seconds: float = 120) -> asyncio.Task[T]:
        """Work that needs nobody else, only time for its pauses."""
        task = self.begin(work)
        while not task.done() and seconds > 0:
            self.time.loop.run(1)
            seconds -= 1
        assert task.done(), "it waits for something that does not come"
        self.check()
        return task

    def die(self) -> None:
        """kill -9: whatever it was at is gone."""
        self.store.dead = True
        for task in (*self._tasks, *self._workers):
            task.cancel()
        self.time.loop.create_task(self.background.drain(0))

    def fail_next(self, fault: Fault) -> None:
        if not self.store.faults:
            self.store.faults.append(fault)

    def check(self) -> None:
        """Raises what nobody expects of work that is done."""
        for task in [one for one in self._tasks if one.done()]:
            self._tasks.discard(task)
            if not task.cancelled() and not isinstance(error := task.exception(), (*ORDINARY, type(None))):
                raise error
