"""What this machine does at best: plain grpc.aio, no token, no database, no log.

An echo is one server and one client; figures of two machines are compared by it. Two hops are a client, a
server that asks another one with a deadline, and that one: a reservation for which nothing is done.
"""

from __future__ import annotations

import asyncio
import multiprocessing
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import uvloop

from benchmarks.loads import OK, Load, at_once, one_at_a_time
from benchmarks.meters import GENERATOR, own_seconds, processor_seconds

ALONE_CALLS = 500
IN_FLIGHT = 100
SECONDS = 3.0
DEADLINE_SECONDS = 4.0
"""Of the second hop: as long as a charge has."""
SERVICE = "benchmark.Floor"


@dataclass(frozen=True)
class Floor:
    """Calls with IN_FLIGHT at once, processor seconds by server and of the client; how long calls take one at
    a time, in seconds."""

    load: Load
    answered: int
    """As the server at the door counted them."""
    alone: list[float]

    @property
    def per_second(self) -> float:
        return self.answered / self.load.seconds

    @property
    def microseconds(self) -> float:
        """Processor time of all servers for each call."""
        spent = sum(seconds for part, seconds in self.load.processor.items() if part != GENERATOR)
        return 1e6 * spent / self.answered

    @property
    def client_microseconds(self) -> float:
        return 1e6 * self.load.processor[GENERATOR] / self.answered


def echo(seconds: float = SECONDS, in_flight: int = IN_FLIGHT) -> Floor:
    """One server."""
    return _measure(1, seconds, in_flight)


def two_hops(seconds: float = SECONDS, in_flight: int = IN_FLIGHT) -> Floor:
    """Two servers, one behind the other."""
    return _measure(2, seconds, in_flight)


def _measure(servers: int, seconds: float, in_flight: int) -> Floor:
    with ExitStack() as stack:
        pids: dict[str, int] = {}
        port = 0
        for number in range(servers, 0, -1):
            port, pids[f"server {number}"] = stack.enter_context(_running(port))

        def spent() -> dict[str, float]:
            return {GENERATOR: own_seconds()} | {name: processor_seconds(pid) for name, pid in pids.items()}

        async def drive() -> Floor:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                ask: Any = channel.unary_unary(f"/{SERVICE}/Echo")
                count: Any = channel.unary_unary(f"/{SERVICE}/Count")

                async def call() -> str:
                    await ask(b"x" * 100, timeout=10)
                    return OK

                await ask(b"x" * 100, wait_for_ready=True, timeout=10)
                alone = await one_at_a_time(ALONE_CALLS, call, Counter())
                before = int(await count(b"", timeout=10))
                load = await at_once(in_flight, seconds, call, spent)
                return Floor(load, int(await count(b"", timeout=10)) - before, alone)

        return uvloop.run(drive())


@contextmanager
def _running(behind: int) -> Iterator[tuple[int, int]]:
    """Port and pid of a server; it asks the one at port `behind`, or answers itself if that is 0."""
    context = multiprocessing.get_context("spawn")
    ports: Any = context.Queue()
    server = context.Process(target=_serve, args=(ports, behind), daemon=True)
    server.start()
    try:
        assert server.pid is not None
        yield ports.get(timeout=30), server.pid
    finally:
        server.kill()
        server.join()


def _serve(ports: Any, behind: int) -> None:
    uvloop.run(_server(ports, behind))


async def _server(ports: Any, behind: int) -> None:
    answered = 0
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{behind}")
    ask: Any = channel.unary_unary(f"/{SERVICE}/Echo")

    async def echo(request: bytes, _context: object) -> bytes:
        nonlocal answered
        if behind:
            request = await ask(request, timeout=DEADLINE_SECONDS)
        answered += 1
        return request

    async def count(_request: bytes, _context: object) -> bytes:
        return str(answered).encode()

    server = grpc.aio.server()
    handlers: Any = {
        "Echo": grpc.unary_unary_rpc_method_handler(echo),
        "Count": grpc.unary_unary_rpc_method_handler(count),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    ports.put(server.add_insecure_port("127.0.0.1:0"))
    await server.start()
    await asyncio.Event().wait()
