"""The proxy in front of two servers that stand in for deposit and fail as a test says."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2

from tests.istio.backends import HEALTH, Backend
from tests.support.policy import Config, RunningPolicy

Mutate = Callable[[Config], object]
EJECTED_SECONDS = 15.0


class ReadyBackend(Backend):
    """Says that it is ready, whatever becomes of charges and reads: what only counting finds."""

    ready = True

    def answer(self, method: str, context: grpc.ServicerContext) -> bytes:
        if method != HEALTH:
            return super().answer(method, context)
        known = health_pb2.HealthCheckResponse.ServingStatus
        status = known.Value("SERVING" if self.ready else "NOT_SERVING")
        said: bytes = health_pb2.HealthCheckResponse(status=status).SerializeToString()
        return said


class Way:
    """From reservation through the proxy to instances of deposit."""

    def __init__(self, folder: Path, backends: list[Backend], mutate: Mutate | None, **values: Any) -> None:
        self.backends = backends
        self.proxy = RunningPolicy(folder, [one.address for one in backends], mutate=mutate, **values)
        self.proxy.start()
        self.channel = grpc.insecure_channel(
            self.proxy.address, options=[("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
        )

    def close(self) -> None:
        self.channel.close()
        self.proxy.stop()
        for one in self.backends:
            one.stop()

    def begin(
        self, method: str, timeout: float = 10.0, headers: Sequence[tuple[str, str]] = ()
    ) -> grpc.Future[Any]:
        """A call that goes on by itself."""
        way: grpc.UnaryUnaryMultiCallable[bytes, Any] = self.channel.unary_unary(method)
        return way.future(b"", timeout=timeout, metadata=tuple(headers))

    def call(self, method: str, timeout: float = 10.0) -> grpc.StatusCode:
        return code_of(self.begin(method, timeout))

    def arrived(self, method: str) -> int:
        """At all instances together."""
        return sum(one.calls[method] for one in self.backends)


def code_of(call: grpc.Future[Any]) -> grpc.StatusCode:
    error = call.exception()
    if error is None:
        return grpc.StatusCode.OK
    assert isinstance(error, grpc.Call)
    return error.code()


def wait_for(seconds: float, satisfied: Callable[[], bool]) -> float:
    """How long it took until `satisfied()`; fails after `seconds`."""
    begin = time.monotonic()
    while not satisfied():
        assert time.monotonic() - begin < seconds, f"not within {seconds} s"
        time.sleep(0.02)
    return time.monotonic() - begin


Open = Callable[..., Way]


@pytest.fixture
def open_way(tmp_path: Path) -> Iterator[Open]:
    """Opens ways, and closes them in the end."""
    opened: list[Way] = []

    def open_one(backends: list[Backend] | None = None, mutate: Mutate | None = None, **values: Any) -> Way:
        """`mutate` changes the configuration; `values`: fields of PolicyValues."""
        chosen = backends or [ReadyBackend(), ReadyBackend()]
        opened.append(Way(tmp_path / str(len(opened)), chosen, mutate, **values))
        return opened[-1]

    yield open_one
    for one in opened:
        one.close()


@pytest.fixture
def way(open_way: Open) -> Way:
    return open_way()
