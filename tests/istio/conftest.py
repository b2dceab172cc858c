"""Reservation's Envoy as istiod configures it, in front of two back ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import grpc
import pytest

from tests.istio.backends import Backend
from tests.istio.proxy import DEPOSIT, Mutate, Proxy

AUTHORITY = "deposit.dinemesh.svc.cluster.local:8082"
LISTENER = "0.0.0.0_8082"

Call: TypeAlias = "grpc.Future[bytes]"


class Way:
    """From reservation through its Envoy to two instances of deposit."""

    def __init__(self, folder: Path, mutate: Mutate | None = None) -> None:
        self.backends = [Backend(), Backend()]
        self.proxy = Proxy(
            "reservation",
            folder,
            {DEPOSIT: [one.address for one in self.backends]},
            listener=LISTENER,
            mutate=mutate,
        )
        self.proxy.start()
        # As in a pod: the name that reservation dials, and its own proxy behind it.
        self.channel = grpc.insecure_channel(
            self.proxy.address,
            options=[("grpc.default_authority", AUTHORITY), ("grpc.use_local_subchannel_pool", 1)],
        )

    def close(self) -> None:
        self.channel.close()
        self.proxy.stop()
        for one in self.backends:
            one.stop()

    def begin(self, method: str, timeout: float = 10.0) -> Call:
        """A call that goes on by itself."""
        made: Any = self.channel.unary_unary(method)
        begun: Call = made.future(b"", timeout=timeout)
        return begun

    def call(self, method: str, timeout: float = 10.0) -> grpc.StatusCode:
        return code_of(self.begin(method, timeout))

    def arrived(self, method: str) -> int:
        """At both instances together."""
        return sum(one.calls[method] for one in self.backends)


def code_of(call: Call) -> grpc.StatusCode:
    error = call.exception()
    if error is None:
        return grpc.StatusCode.OK
    assert isinstance(error, grpc.Call)
    return error.code()


Open = Callable[..., Way]


@pytest.fixture
def open_way(tmp_path: Path) -> Iterator[Open]:
    """Opens ways, and closes them in the end. `mutate` changes what istiod made."""
    opened: list[Way] = []

    def open_one(mutate: Mutate | None = None) -> Way:
        opened.append(Way(tmp_path / str(len(opened)), mutate))
        return opened[-1]

    yield open_one
    for one in opened:
        one.close()


@pytest.fixture
def way(open_way: Open) -> Way:
    return open_way()
