"""A gRPC server in deposit's place that is well, sick or hangs as a test says, and counts what arrives."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import grpc
from grpc_health.v1 import health_pb2

State = Literal["well", "unavailable", "overloaded", "hangs", "internal", "held"]

CHARGE = "/dinemesh.deposit.v1.DepositService/CreateDeposit"
READ = "/dinemesh.deposit.v1.DepositService/GetDeposit"
HEALTH = "/grpc.health.v1.Health/Check"

SERVING, NOT_SERVING = map(health_pb2.HealthCheckResponse.ServingStatus.Value, ("SERVING", "NOT_SERVING"))


class Backend:
    """One instance. It may be told at any time how to answer.

    `ready` is what it says of its health, whatever becomes of charges and reads: what is found then is found
    by counting. With None a question about its health fares as every other call.
    """

    def __init__(self, state: State = "well", *, ready: bool | None = None) -> None:
        self.state: State = state
        self.ready = ready
        self.calls: Counter[str] = Counter()
        self.had_left: list[float] = []
        """Seconds that each call was told to have."""
        self.release = threading.Event()
        """Lets those go that are held."""
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._server = grpc.server(ThreadPoolExecutor(128), handlers=[_Everything(self)])
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def stop(self) -> None:
        self._stopped.set()
        self.release.set()
        self._server.stop(0).wait()

    def answer(self, method: str, context: grpc.ServicerContext) -> bytes:
        if method == HEALTH and self.ready is not None:
            status = SERVING if self.ready else NOT_SERVING
            said: bytes = health_pb2.HealthCheckResponse(status=status).SerializeToString()
            return said
        with self._lock:
            self.calls[method] += 1
            self.had_left.append(context.time_remaining())
        match self.state:
            case "unavailable":
                context.abort(grpc.StatusCode.UNAVAILABLE, "this instance is broken")
            case "overloaded":
                context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "come back later")
            case "internal":
                context.abort(grpc.StatusCode.INTERNAL, "an error of its own")
            case "hangs":
                self._stopped.wait(20)
            case "held":
                self.release.wait(20)
        return b""


class _Everything(grpc.GenericRpcHandler):
    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        method = str(details.method)
        if method.endswith("/Unknown"):
            return None  # the library says UNIMPLEMENTED
        decode = _refuse if method.endswith("/Corrupt") else None
        return grpc.unary_unary_rpc_method_handler(
            lambda _request, context: self._backend.answer(method, context), request_deserializer=decode
        )


def _refuse(_body: bytes) -> bytes:
    raise ValueError("bytes that are no message")
