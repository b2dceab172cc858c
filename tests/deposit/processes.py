"""The sandbox and the deposit service as processes of their own, for tests over real gRPC."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import grpc

from dinemesh.sandbox.v1 import sandbox_pb2 as pb
from dinemesh.sandbox.v1 import sandbox_pb2_grpc
from tests.support.mesh import Part
from tests.support.ports import free_ports

if TYPE_CHECKING:
    from dinemesh.sandbox.v1.sandbox_pb2_grpc import SandboxServiceAsyncStub as Stub


def sandbox_part(folder: Path) -> Part:
    (port,) = free_ports(1)
    environment = {"PORT": str(port), "DATABASE_URL": f"sqlite:///{folder}/sandbox.db"}
    return Part("sandbox", "deposit_svc.sandbox", port, environment, folder / "sandbox.log")


@asynccontextmanager
async def sandbox_stub(part: Part) -> AsyncIterator[Stub]:
    async with grpc.aio.insecure_channel(part.address) as channel:
        yield sandbox_pb2_grpc.SandboxServiceStub(channel)


async def record_of(stub: Stub, key: str) -> pb.Charge | None:
    """What the provider has under a key, by its own list."""
    page_token = ""
    while True:
        page = await stub.ListCharges(pb.ListChargesRequest(page_size=1000, page_token=page_token))
        for charge in page.charges:
            if charge.key == key:
                return charge
        page_token = page.next_page_token
        if not page_token:
            return None
