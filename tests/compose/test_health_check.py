"""`python -m dinemesh.kit.health`, which a container asks itself with."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys

import grpc

from dinemesh.kit.health import Health
from tests.support.ports import free_ports


async def test_a_container_is_well_when_its_service_is_ready_and_not_before_nor_without_one() -> None:

    health = Health()
    server = grpc.aio.server()
    health.add_to(server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        assert await asyncio.to_thread(ask, port) == 1
        health.set_ready(True)
        assert await asyncio.to_thread(ask, port) == 0
        health.stop()
        assert await asyncio.to_thread(ask, port) == 1
    finally:
        await server.stop(0)
    assert await asyncio.to_thread(ask, *free_ports(1)) == 1


def ask(port: int) -> int:
    """As HEALTHCHECK does: the exit code."""
    return subprocess.run(
        [sys.executable, "-O", "-m", "dinemesh.kit.health"],
        env={**os.environ, "DINEMESH_PORT": str(port)},
        capture_output=True,
        timeout=30,
        check=False,
    ).returncode
