"""grpc.health.v1: "" and each service's name are ready or not; "live" says only that the event loop runs.

`python -m dinemesh.kit.health` asks the service at DINEMESH_PORT of this machine whether it is ready, for a
container that has no better tool.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

LIVE = "live"
ASK_SECONDS = 2.0

_Status = health_pb2.HealthCheckResponse


class Health:
    """The health service of one server. Not ready until told so, and never ready again once it stops.

    Written here because the library's servicer starts with "" SERVING, and because its watches never end by
    themselves, so that each would hold up a stop for the whole grace.
    """

    def __init__(self) -> None:
        self._ready = False
        self._stopping = False
        self._closed = False
        self._names = {""}
        self._changed = asyncio.Event()

    def add_to(self, server: grpc.aio.Server) -> None:
        """Registers grpc.health.v1 on `server`, which must not have started yet."""
        add: Any = health_pb2_grpc.add_HealthServicer_to_server
        add(self, server)

    def name(self, service: str) -> None:
        """Answers for a service's full name as for ""."""
        self._names.add(service)

    @property
    def ready(self) -> bool:
        """Decides whether all names but "live" answer SERVING; False at first, and for good after `stop`."""
        return self._ready

    def set_ready(self, ready: bool) -> None:
        """Tells whether calls should come here. Without effect once the server stops."""
        self._set(ready and not self._stopping)

    def stop(self) -> None:
        """Not ready for good. "live" stays true: a draining process must not be killed. Watches go on: a gRPC
        client whose watch has ended asks again at once, all through the drain."""
        self._stopping = True
        self._set(False)

    def close(self) -> None:
        """Watches end, since the door closes now."""
        self._closed = True
        self._set(False)

    def _set(self, ready: bool) -> None:
        self._ready = ready
        self._changed.set()
        self._changed = asyncio.Event()

    def _status(self, service: str) -> str | None:
        if service == LIVE:
            return "SERVING"
        if service not in self._names:
            return None
        return "SERVING" if self._ready else "NOT_SERVING"

    async def Check(
        self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> health_pb2.HealthCheckResponse:
        """Aborts with NOT_FOUND for an unknown name, as grpc.health.v1 demands."""
        status = self._status(request.service)
        if status is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
        return _Status(status=status)

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """Yields the status at once and after each change until `close`; SERVICE_UNKNOWN for another name."""
        last: str | None = None
        while True:
            changed = self._changed
            status = self._status(request.service)
            if status is None:
                status = "SERVICE_UNKNOWN"
            if status != last:
                yield _Status(status=status)
            last = status
            if self._closed:
                return
            await changed.wait()

    async def List(
        self, request: Any, context: grpc.aio.ServicerContext[Any, Any]
    ) -> health_pb2.HealthListResponse:
        """Answers with the status of every known name, "" and "live" included."""
        answer = health_pb2.HealthListResponse()
        for name in sorted({*self._names, LIVE}):
            answer.statuses[name].CopyFrom(_Status(status=self._status(name)))
        return answer


def ask(port: int, seconds: float = ASK_SECONDS) -> bool:
    """Whether what listens on this port of 127.0.0.1 says that it is ready."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=seconds
            )
        except grpc.RpcError:
            return False
    return bool(answer.status == _Status.SERVING)


if __name__ == "__main__":
    sys.exit(0 if ask(int(os.environ["DINEMESH_PORT"])) else 1)
