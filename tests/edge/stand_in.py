"""Stands in for all four services where a test is about Envoy alone.

It takes any call, tells what arrived, and does what the header `x-do` of the call says.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc

from dinemesh.kit import errors
from dinemesh.kit.refusal import Refusal
from dinemesh.reservation.v1 import reservation_pb2, reservation_service_pb2
from dinemesh.watch.v1 import watch_pb2
from tests.support.mesh import Keys

HEALTH = "/grpc.health.v1.Health/Check"
SERVING, NOT_SERVING = b"\x08\x01", b"\x08\x02"
"""HealthCheckResponse, on the wire."""


@dataclass(frozen=True)
class Seen:
    """A call as it arrived."""

    method: str
    metadata: dict[str, str]
    seconds_left: float | None
    """Until the deadline; None if there was none."""
    request: bytes = b""
    """Of a unary call, the message."""


class StandIn:
    """A gRPC server at one address. `keys` are those that the edge in front of it is to trust."""

    def __init__(self, keys: Keys, *, healthy: bool = True) -> None:
        self.keys = keys
        self.healthy = healthy
        self.seen: list[Seen] = []
        self._server = grpc.server(ThreadPoolExecutor(128))
        self._server.add_generic_rpc_handlers((_Everything(self),))
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()
        self._stopped = threading.Event()

    def __getitem__(self, service: str) -> StandIn:
        return self

    def stop(self) -> None:
        self._stopped.set()
        self._server.stop(0).wait()

    def calls(self, rpc: str) -> list[Seen]:
        """The calls of a method, by the end of its name."""
        return [one for one in self.seen if one.method.endswith(f"/{rpc}")]

    def note(self, method: str, context: grpc.ServicerContext, request: bytes = b"") -> list[str]:
        """Writes the call down; returns the words of its `x-do`."""
        metadata = {str(key): str(value) for key, value in context.invocation_metadata()}
        left = context.time_remaining()
        # Without a deadline, the library says a year or more.
        self.seen.append(Seen(method, metadata, left if left is not None and left < 1e6 else None, request))
        return metadata.get("x-do", "").split()

    def sleep(self, seconds: float) -> None:
        self._stopped.wait(seconds)


class _Everything(grpc.GenericRpcHandler):
    def __init__(self, stand_in: StandIn) -> None:
        self._stand_in = stand_in

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
        method = str(details.method)
        stand_in = self._stand_in

        def health(_request: bytes, _context: grpc.ServicerContext) -> bytes:
            return SERVING if stand_in.healthy else NOT_SERVING

        def unary(request: bytes, context: grpc.ServicerContext) -> bytes:
            match stand_in.note(method, context, request):
                case ["sleep", seconds]:
                    stand_in.sleep(float(seconds))
                case ["refuse", reason]:
                    _refuse(context, Refusal(reason, "as you wish", retry_after=2))
                case ["answer", kilobytes]:
                    note = "x" * 1000
                    many = [reservation_pb2.Reservation(note=note)] * int(kilobytes)
                    return reservation_service_pb2.ListReservationsResponse(
                        reservations=many
                    ).SerializeToString()
            return b""

        def stream(_request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
            match stand_in.note(method, context):
                case ["quiet", seconds]:
                    yield _heartbeat()
                    stand_in.sleep(float(seconds))
            yield _end()

        def both_ways(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
            stand_in.note(method, context)
            yield from requests

        if method == HEALTH:
            return grpc.unary_unary_rpc_method_handler(health)
        if method.startswith("/grpc.reflection."):
            return grpc.stream_stream_rpc_method_handler(both_ways)
        if "/Watch" in method:
            return grpc.unary_stream_rpc_method_handler(stream)
        return grpc.unary_unary_rpc_method_handler(unary)


def _refuse(context: grpc.ServicerContext, refusal: Refusal) -> None:
    status = errors.to_status(refusal)
    context.set_trailing_metadata(
        (
            ("grpc-status-details-bin", status.SerializeToString()),
            ("retry-after", "2"),
        )
    )
    context.abort(errors.code_of(refusal.reason), refusal.message)


def _heartbeat() -> bytes:
    return reservation_service_pb2.WatchReservationResponse(
        heartbeat=watch_pb2.Heartbeat()
    ).SerializeToString()


def _end() -> bytes:
    return reservation_service_pb2.WatchReservationResponse(
        end=watch_pb2.End(reason=watch_pb2.END_REASON_FINISHED)
    ).SerializeToString()


class Wire:
    """The way to a stand-in, which can be cut."""

    def __init__(self, stand_in: StandIn) -> None:
        self._to = stand_in.address
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listening.getsockname()[1]}"
        self._ends: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Every connection is reset, and no new one is taken."""
        self._listening.close()
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                end.shutdown(socket.SHUT_RDWR)  # wakes who reads from it
            end.close()

    def _accept(self) -> None:
        host, _, port = self._to.rpartition(":")
        while True:
            try:
                here, _ = self._listening.accept()
                there = socket.create_connection((host, int(port)))
            except OSError:
                return
            self._ends += [here, there]
            for source, target in ((here, there), (there, here)):
                threading.Thread(target=_pump, args=(source, target), daemon=True).start()


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while some := source.recv(65536):
            target.sendall(some)
