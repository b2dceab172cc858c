"""What this machine does at best: a plain grpc.aio echo. Figures of two machines are compared by it."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import uvloop

CALLS = 10_000
ALONE_CALLS = 500
IN_FLIGHT = 100
METHOD = "/benchmark.Floor/Echo"


@dataclass(frozen=True)
class Floor:
    """Calls per second with IN_FLIGHT at once, and for each the processor time of server and client in
    microseconds; how long calls take one at a time, in seconds."""

    per_second: float
    microseconds: float
    client_microseconds: float
    alone: list[float]


def measure(calls: int = CALLS) -> Floor:
    """One server process, one client, no token, no database, no log."""
    context = multiprocessing.get_context("spawn")
    ports: Any = context.Queue()
    server = context.Process(target=_serve, args=(ports,), daemon=True)
    server.start()
    try:
        port = ports.get(timeout=30)
        assert server.pid is not None
        alone = uvloop.run(_call_alone(port))
        before, own_before = processor_seconds(server.pid), time.process_time()
        seconds = uvloop.run(_call(port, calls))
        spent, own = processor_seconds(server.pid) - before, time.process_time() - own_before
    finally:
        server.kill()
        server.join()
    return Floor(calls / seconds, 1e6 * spent / calls, 1e6 * own / calls, alone)


def processor_seconds(pid: int) -> float:
    """User and system time that a process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _serve(ports: Any) -> None:
    uvloop.run(_server(ports))


async def _server(ports: Any) -> None:
    async def echo(request: bytes, _context: object) -> bytes:
        return request

    server = grpc.aio.server()
    method: Any = grpc.unary_unary_rpc_method_handler(echo)
    service, name = METHOD[1:].split("/")
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {name: method}),))
    ports.put(server.add_insecure_port("127.0.0.1:0"))
    await server.start()
    await server.wait_for_termination()


async def _call_alone(port: int) -> list[float]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        echo: Any = channel.unary_unary(METHOD)
        await echo(b"x" * 100, wait_for_ready=True, timeout=10)
        taken = []
        for _ in range(ALONE_CALLS):
            start = time.perf_counter()
            await echo(b"x" * 100, timeout=10)
            taken.append(time.perf_counter() - start)
        return taken


async def _call(port: int, calls: int) -> float:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        echo: Any = channel.unary_unary(METHOD)
        await echo(b"x" * 100, wait_for_ready=True, timeout=10)

        async def caller() -> None:
            for _ in range(calls // IN_FLIGHT):
                await echo(b"x" * 100, timeout=10)

        start = time.perf_counter()
        await asyncio.gather(*(caller() for _ in range(IN_FLIGHT)))
        return time.perf_counter() - start
