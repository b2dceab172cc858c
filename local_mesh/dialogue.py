"""Talks to the services of a mesh on this machine as a client does: generated stubs, a token, a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from google.type import money_pb2
from grpc_status import rpc_status

from dinemesh.deposit.v1 import deposit_service_pb2_grpc
from dinemesh.history.v1 import history_service_pb2_grpc
from dinemesh.kit import currency, wire
from dinemesh.reservation.v1 import reservation_service_pb2_grpc
from dinemesh.restaurant.v1 import restaurant_service_pb2, restaurant_service_pb2_grpc
from local_mesh.failure import Failure
from local_mesh.settings import MeshSettings

DEADLINE_SECONDS = 10.0
TRIES = 4
"""A refusal that names a time is tried again after it, with the same request id."""


Answer = TypeVar("Answer")


class Services:
    """Stubs of the four services, reached directly or, as clients do, through the edge."""

    def __init__(self, settings: MeshSettings, *, through_the_edge: bool = False) -> None:
        addresses = {name: settings.address("edge" if through_the_edge else name) for name in _STUBS}
        self._channels = {name: grpc.insecure_channel(address) for name, address in addresses.items()}
        made: dict[str, Any] = {name: stub(self._channels[name]) for name, stub in _STUBS.items()}
        self.reservation: reservation_service_pb2_grpc.ReservationServiceStub = made["reservation"]
        self.deposit: deposit_service_pb2_grpc.DepositServiceStub = made["deposit"]
        self.restaurant: restaurant_service_pb2_grpc.RestaurantServiceStub = made["restaurant"]
        self.history: history_service_pb2_grpc.HistoryServiceStub = made["history"]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for channel in self._channels.values():
            channel.close()


def wait_for_the_edge(settings: MeshSettings, seconds: float) -> None:
    """Until it answers what everybody may ask. Raises Failure when it does not."""
    end = time.monotonic() + seconds
    with Services(settings, through_the_edge=True) as services:
        while True:
            try:
                services.restaurant.ListRestaurants(
                    restaurant_service_pb2.ListRestaurantsRequest(), timeout=DEADLINE_SECONDS
                )
                return
            except grpc.RpcError as error:
                if time.monotonic() > end:
                    code = error.code() if isinstance(error, grpc.Call) else error
                    raise Failure(
                        f"The edge at {settings.address('edge')} does not answer ({code});"
                        f" it had {seconds:g} s."
                    ) from None
            time.sleep(0.2)


_STUBS: dict[str, Callable[[grpc.Channel], object]] = {
    "reservation": reservation_service_pb2_grpc.ReservationServiceStub,
    "deposit": deposit_service_pb2_grpc.DepositServiceStub,
    "restaurant": restaurant_service_pb2_grpc.RestaurantServiceStub,
    "history": history_service_pb2_grpc.HistoryServiceStub,
}


class Refused(Exception):
    """A service said no, and why."""

    def __init__(self, error: grpc.RpcError) -> None:
        status = rpc_status.from_call(error)
        self.reason = ""
        self.retry_seconds: float | None = None
        self.message = error.details() or ""
        self.code = error.code().name
        for detail in status.details if status else ():
            info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
            if detail.Unpack(info):
                self.reason = info.reason
            elif detail.Unpack(retry):
                self.retry_seconds = retry.retry_delay.ToTimedelta().total_seconds()
        super().__init__(f"{self.code} {self.reason}: {self.message}")


def ask(method: Callable[..., Answer], request: Message, token: str = "") -> Answer:
    """Call a method. A refusal that says when to come back is obeyed; any other is raised as Refused."""
    metadata = [("authorization", f"Bearer {token}")] if token else []
    for tries_left in reversed(range(TRIES)):
        try:
            return method(request, timeout=DEADLINE_SECONDS, metadata=metadata)
        except grpc.RpcError as error:
            refused = Refused(error)
            if refused.retry_seconds is None or not tries_left:
                raise refused from error
            time.sleep(refused.retry_seconds)
    raise AssertionError("unreachable")


def until(
    what: str, look: Callable[[], Answer], good: Callable[[Answer], bool], seconds: float = 30
) -> Answer:
    """Look again and again until it is good; Failure with what was last seen."""
    end = time.monotonic() + seconds
    while True:
        seen = look()
        if good(seen):
            return seen
        if time.monotonic() > end:
            raise Failure(f"After {seconds:.0f} s still not so: {what}. Last seen:\n{seen}")
        time.sleep(0.1)


def money(amount: money_pb2.Money) -> str:
    """For people: EUR 40.00, JPY 6000."""
    minor, code = wire.from_money(amount, "amount")
    return f"{code} {currency.amount(minor, code)}"
