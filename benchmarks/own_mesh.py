"""A mesh that a benchmark starts for itself, on ports of its own, with a restaurant that never fills up."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
from google.protobuf import timestamp_pb2
from google.type import date_pb2, money_pb2, timeofday_pb2

from dinemesh.reservation.v1 import reservation_pb2, reservation_service_pb2, reservation_service_pb2_grpc
from dinemesh.restaurant.v1 import restaurant_pb2, restaurant_service_pb2, restaurant_service_pb2_grpc
from local_mesh import machine, tokens
from local_mesh.commands import Mesh

ROOT = Path(__file__).resolve().parent.parent
# Beside a mesh that runs on the default ports.
SETTINGS: Mapping[str, str] = {
    "EDGE_PORT": "18080",
    "EDGE_ADMIN_PORT": "18090",
    "POLICY_PORT": "18092",
    "POLICY_ADMIN_PORT": "18093",
    "RESERVATION_PORT": "18081",
    "DEPOSIT_PORT": "18082",
    "HISTORY_PORT": "18083",
    "RESTAURANT_PORT": "18084",
    "SANDBOX_PORT": "18085",
    "RESERVATION_METRICS_PORT": "19081",
    "DEPOSIT_METRICS_PORT": "19082",
    "HISTORY_METRICS_PORT": "19083",
    "RESTAURANT_METRICS_PORT": "19084",
    "SANDBOX_METRICS_PORT": "19085",
    "RABBITMQ_PORT": "15673",
    "RABBITMQ_DIST_PORT": "35673",
    "EPMD_PORT": "14370",
    "STATE_DIR": str(ROOT / ".local-bench"),
    "SAMPLES": "off",
}
# One customer books all tables here, and what one may do is not what is measured.
NO_LIMIT: Mapping[str, str] = {
    "RESERVATION_CUSTOMER_ATTEMPTS_LIMIT": "100000",
    "RESERVATION_CUSTOMER_HELD_SEATS_LIMIT": "1000000",
}
SEATS = 100_000
SLOT_HOURS = range(10, 22)
DEADLINE_SECONDS = 10.0
SETTLED_SECONDS = 60.0

CONFIRMED = reservation_pb2.ReservationState.RESERVATION_STATE_CONFIRMED


def local_mesh(command: str, settings: Mapping[str, str]) -> float:
    """Run a make target's command on the benchmark's own mesh; returns how long it took."""
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "local_mesh", command],
        env=environment(settings, os.environ),
        cwd=ROOT,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return time.perf_counter() - start


def environment(settings: Mapping[str, str], around: Mapping[str, str]) -> dict[str, str]:
    """What a command of that mesh gets. What stood on make's command line is for the benchmark
    (`make load IN_FLIGHT=5`), and would be taken for a setting of the mesh."""
    kept = {name: value for name, value in around.items() if name != "MAKEFLAGS"}
    return kept | {f"DINEMESH_{name}": value for name, value in settings.items()}


@contextmanager
def running(settings: Mapping[str, str]) -> Iterator[Mesh]:
    """A fresh mesh that is up inside the block; nothing stays of it."""
    shutil.rmtree(settings["STATE_DIR"], ignore_errors=True)
    try:
        local_mesh("up", settings)
        yield Mesh(settings)
    finally:
        local_mesh("down", settings)
        shutil.rmtree(settings["STATE_DIR"], ignore_errors=True)


def pids_of(mesh: Mesh) -> dict[str, int]:
    """The processes of the mesh by the names of its parts; of the proxies, Envoy itself."""
    supervisor = mesh.supervisor
    assert supervisor is not None
    try:
        found = {name: part.pid for name, part in supervisor.parts().items() if part.pid}
    finally:
        supervisor.close()
    for proxy in ("policy", "edge"):
        (found[proxy],) = machine.children_of(found[proxy])
    return found


@dataclass(frozen=True)
class Restaurant:
    """It accepts by itself, and has more seats than will be asked for."""

    restaurant_id: str
    dine_times: list[timestamp_pb2.Timestamp]
    policy_etag: str


async def open_restaurant(mesh: Mesh) -> Restaurant:
    """Returns as soon as tables can be booked."""
    metadata = [("authorization", f"Bearer {tokens.person(mesh.places, 'bench', 'operator')}")]
    async with grpc.aio.insecure_channel(mesh.settings.address("restaurant")) as channel:
        restaurants = restaurant_service_pb2_grpc.RestaurantServiceStub(channel)
        made = await restaurants.CreateRestaurant(
            restaurant_service_pb2.CreateRestaurantRequest(
                request_id=str(uuid.uuid4()),
                name="Benchmark",
                time_zone="UTC",
                policy=restaurant_pb2.Policy(
                    deposit_per_person=money_pb2.Money(currency_code="EUR", units=20),
                    free_cancel_window_seconds=3600,
                    acceptance=restaurant_pb2.AcceptanceMode.ACCEPTANCE_MODE_AUTO,
                    acceptance_limit_seconds=3600,
                    acceptance_lead_seconds=600,
                    no_show_grace_seconds=900,
                    slot_interval_seconds=3600,
                    service_duration_seconds=7200,
                    max_party_size=12,
                ),
            ),
            metadata=metadata,
            timeout=DEADLINE_SECONDS,
        )
        restaurant_id = made.restaurant.restaurant_id
        day = datetime.now(UTC).date() + timedelta(days=2)
        date = date_pb2.Date(year=day.year, month=day.month, day=day.day)
        opened = await restaurants.OpenSlots(
            restaurant_service_pb2.OpenSlotsRequest(
                restaurant_id=restaurant_id,
                first_date=date,
                last_date=date,
                times=[timeofday_pb2.TimeOfDay(hours=hour) for hour in SLOT_HOURS],
                capacity=SEATS,
            ),
            metadata=metadata,
            timeout=DEADLINE_SECONDS,
        )
    dine_times = [slot.dine_time for slot in opened.slots]
    restaurant = Restaurant(restaurant_id, dine_times, made.restaurant.policy_etag)
    customer = Customer(mesh.settings.address("reservation"), token_of_customer(mesh), restaurant)
    async with asyncio.timeout(SETTLED_SECONDS):
        while True:
            try:
                await customer.reserve()
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.05)
            else:
                break
    await customer.close()
    return restaurant


def token_of_customer(mesh: Mesh) -> str:
    """The one who books all tables."""
    return tokens.person(mesh.places, "bench", "customer")


class Customer:
    """Books tables over gRPC, at the service or at the edge."""

    def __init__(self, address: str, token: str, restaurant: Restaurant) -> None:
        self._channel = grpc.aio.insecure_channel(address)
        self._reservations = reservation_service_pb2_grpc.ReservationServiceStub(self._channel)
        self._metadata = [("authorization", f"Bearer {token}")]
        self._restaurant = restaurant
        self._booked = 0

    async def reserve(self, card: str = "tok_visa", *, token: str = "") -> str:
        """Book for two, as somebody else if there is another token; returns the id once the deposit is
        captured."""
        self._booked += 1
        dine_times = self._restaurant.dine_times
        answer = await self._reservations.CreateReservation(
            reservation_service_pb2.CreateReservationRequest(
                request_id=str(uuid.uuid4()),
                restaurant_id=self._restaurant.restaurant_id,
                dine_time=dine_times[self._booked % len(dine_times)],
                party_size=2,
                policy_etag=self._restaurant.policy_etag,
                payment_token=card,
            ),
            metadata=[("authorization", f"Bearer {token}")] if token else self._metadata,
            timeout=DEADLINE_SECONDS,
        )
        return str(answer.reservation.reservation_id)

    async def read(self, reservation_id: str) -> reservation_pb2.Reservation:
        """The reservation as it stands."""
        answer = await self._reservations.GetReservation(
            reservation_service_pb2.GetReservationRequest(reservation_id=reservation_id),
            metadata=self._metadata,
            timeout=DEADLINE_SECONDS,
        )
        return answer.reservation

    async def confirmed(self, reservation_id: str) -> None:
        """Wait, by looking every millisecond, until the restaurant has accepted."""
        async with asyncio.timeout(SETTLED_SECONDS):
            while True:
                if (await self.read(reservation_id)).state == CONFIRMED:
                    return
                await asyncio.sleep(0.001)

    async def close(self) -> None:
        await self._channel.close()
