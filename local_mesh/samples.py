"""Sample restaurants with open tables for the next 30 days, made through the RPCs that an operator uses."""

from __future__ import annotations

import functools
import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

from google.type import date_pb2, money_pb2, timeofday_pb2

from dinemesh.reservation.v1 import reservation_service_pb2
from dinemesh.restaurant.v1 import restaurant_pb2, restaurant_service_pb2
from local_mesh import tokens
from local_mesh.commands import Mesh, say
from local_mesh.dialogue import Refused, Services, ask, until
from local_mesh.failure import Failure

DAYS = 30
SEATS = 20
TIMES = [(hour, minute) for hour in (12, 13, 18, 19, 20, 21) for minute in (0, 30)]
_NAMESPACE = uuid.UUID("6f1d8d3e-5f0a-4f57-9d0e-0d6a8a6d2f11")


@dataclass(frozen=True)
class Sample:
    """A restaurant to be made; `time_zone` is an IANA name, and TIMES are local to it."""

    name: str
    time_zone: str
    policy: restaurant_pb2.Policy

    @property
    def request_id(self) -> str:
        """The same for the same contents, so that a second `make up` makes no second restaurant."""
        contents = f"{self.name}\n{self.time_zone}\n{self.policy.SerializeToString(deterministic=True).hex()}"
        return str(uuid.uuid5(_NAMESPACE, contents))


def _policy(
    deposit: money_pb2.Money, acceptance: restaurant_pb2.AcceptanceMode.ValueType
) -> restaurant_pb2.Policy:
    return restaurant_pb2.Policy(
        deposit_per_person=deposit,
        free_cancel_window_seconds=24 * 3600,
        acceptance=acceptance,
        acceptance_limit_seconds=2 * 3600,
        acceptance_lead_seconds=1800,
        no_show_grace_seconds=900,
        slot_interval_seconds=1800,
        service_duration_seconds=2 * 3600,
        max_party_size=12,
    )


AUTO = restaurant_pb2.ACCEPTANCE_MODE_AUTO
MANUAL = restaurant_pb2.ACCEPTANCE_MODE_MANUAL

SAMPLES = (
    Sample("Trattoria Lume", "Europe/Rome", _policy(money_pb2.Money(currency_code="EUR", units=20), AUTO)),
    Sample(
        "Harbour Grill", "America/New_York", _policy(money_pb2.Money(currency_code="USD", units=25), MANUAL)
    ),
    Sample("Koen", "Asia/Tokyo", _policy(money_pb2.Money(currency_code="JPY", units=3000), AUTO)),
)


def refresh(mesh: Mesh, *, through_the_edge: bool = False) -> None:
    """Make the restaurants that are missing, and open the days that are not open yet.

    What staff changed on days that were opened before stays as they left it. Returns when reservation, which
    hears of it by events, offers all of it.
    """
    token = tokens.person(mesh.places, "local-mesh", "operator")
    file = mesh.places.state / "samples.json"
    opened: dict[str, str] = json.loads(file.read_text()) if file.exists() else {}
    new: list[tuple[restaurant_pb2.Restaurant, Sequence[restaurant_pb2.Slot]]] = []
    with Services(mesh.settings, through_the_edge=through_the_edge) as services:
        for sample in SAMPLES:
            made = ask(
                services.restaurant.CreateRestaurant,
                restaurant_service_pb2.CreateRestaurantRequest(
                    request_id=sample.request_id,
                    name=sample.name,
                    time_zone=sample.time_zone,
                    policy=sample.policy,
                ),
                token,
            ).restaurant
            today = datetime.now(UTC).astimezone(ZoneInfo(sample.time_zone)).date()
            last = today + timedelta(days=DAYS)
            before = opened.get(made.restaurant_id)
            first = max(today, date.fromisoformat(before) + timedelta(days=1)) if before else today
            if first > last:
                continue
            slots = ask(
                services.restaurant.OpenSlots,
                restaurant_service_pb2.OpenSlotsRequest(
                    restaurant_id=made.restaurant_id,
                    first_date=_date(first),
                    last_date=_date(last),
                    times=[timeofday_pb2.TimeOfDay(hours=hour, minutes=minute) for hour, minute in TIMES],
                    capacity=SEATS,
                ),
                token,
            ).slots
            opened[made.restaurant_id] = last.isoformat()
            file.write_text(json.dumps(opened, indent=2))
            say(f"  {sample.name} ({sample.time_zone}) takes reservations from {first} to {last}")
            new.append((made, slots))
        for restaurant, opened_now in new:
            _wait_until_offered(services, restaurant, opened_now)


def _wait_until_offered(
    services: Services, restaurant: restaurant_pb2.Restaurant, slots: Sequence[restaurant_pb2.Slot]
) -> None:
    """Says so, and goes on, if that takes too long: reservation may have been taken away."""
    zone = ZoneInfo(restaurant.time_zone)
    days: dict[str, set[int]] = {}
    for slot in slots:
        days.setdefault(slot.dine_time.ToDatetime(UTC).astimezone(zone).date().isoformat(), set()).add(
            slot.dine_time.seconds
        )
    # Of today some are over.
    days.pop(datetime.now(zone).date().isoformat(), None)
    try:
        for day, times in days.items():
            until(
                f"reservation has heard of every table at {restaurant.name} on {day}",
                functools.partial(_offered, services, restaurant, day),
                times.issubset,
            )
    except (Failure, Refused):
        say(f"  Reservation has not heard of all tables at {restaurant.name} yet; it will, by itself.")


def _offered(services: Services, restaurant: restaurant_pb2.Restaurant, day: str) -> set[int]:
    """The times that reservation knows, in seconds of the epoch."""
    request = reservation_service_pb2.ListAvailableSlotsRequest(
        restaurant_id=restaurant.restaurant_id, date=day, party_size=1
    )
    try:
        slots = ask(services.reservation.ListAvailableSlots, request).slots
    except Refused as refused:
        if refused.code == "NOT_FOUND":  # nor of the restaurant yet
            return set()
        raise
    return {slot.dine_time.seconds for slot in slots}


def _date(day: date) -> date_pb2.Date:
    return date_pb2.Date(year=day.year, month=day.month, day=day.day)
