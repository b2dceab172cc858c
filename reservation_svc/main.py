"""The reservation service: `python -m reservation_svc.main`. Builds and names every part; the kit closes
them in reverse."""

from __future__ import annotations

from datetime import timedelta
from functools import partial

from dinemesh.kit.bus import Bus
from dinemesh.kit.channel import ServiceToken
from dinemesh.kit.inbox import Consumer
from dinemesh.kit.outbox import Outbox, Relay
from dinemesh.kit.service import Service, main
from dinemesh.kit.settings import load
from dinemesh.kit.workers import Periodic
from dinemesh.reservation.v1 import reservation_service_pb2_grpc
from reservation_svc import handlers, messages, servicer
from reservation_svc.clients.deposit import DepositClient
from reservation_svc.domain import Rules
from reservation_svc.persistence import tables
from reservation_svc.settings import ReservationSettings
from reservation_svc.usecases.desk import Desk, Limits
from reservation_svc.usecases.door import Door
from reservation_svc.usecases.settle import settle


async def run() -> None:
    settings = load(ReservationSettings)
    service = Service("reservation", settings)
    store = service.open_store("reservation_svc")

    bus = Bus(settings.amqp_url, "reservation")
    outbox = Outbox(tables.outbox, messages.encode_event, source="reservation")
    token = ServiceToken(settings.token_file) if settings.token_file is not None else None
    deposits = DepositClient(settings.deposit_address, token)
    service.on_close(deposits.close)
    door = Door(
        threshold=settings.breaker_threshold,
        limit=settings.attempts_limit,
        rest_seconds=settings.breaker_rest_seconds,
        longest_rest_seconds=settings.breaker_longest_rest_seconds,
        is_healthy=deposits.is_healthy,
    )
    desk = Desk(
        store=store,
        outbox=outbox,
        deposits=deposits,
        door=door,
        background=service.background,
        rules=rules(settings),
        limits=limits(settings),
        tell=service.changes.notify,
    )

    service.add_servicer(
        reservation_service_pb2_grpc.add_ReservationServiceServicer_to_server,
        servicer.ReservationServicer(desk, service.changes, service.pace),
        servicer.SERVICE,
        servicer.ACCESS,
    )
    service.add_worker(bus, "bus")
    service.add_worker(Relay(store, outbox, bus), "relay")
    service.add_worker(door, "breaker probe")
    service.add_worker(
        Periodic("settling", settings.settle_interval_seconds, partial(settle, desk)), "settling"
    )
    service.add_consumer(Consumer(store, bus, tables.inbox, handlers.restaurants(desk)))
    service.add_consumer(Consumer(store, bus, tables.inbox, handlers.deposits(desk)))
    await service.run()


def rules(settings: ReservationSettings) -> Rules:
    return Rules(
        attempt=timedelta(seconds=settings.attempt_deadline_seconds),
        hold=timedelta(seconds=settings.hold_expire_seconds),
        unmarked=timedelta(seconds=settings.unmarked_seconds),
        horizon=timedelta(days=settings.horizon_days),
    )


def limits(settings: ReservationSettings) -> Limits:
    return Limits(
        deposit_deadline=settings.deposit_deadline_ms / 1000,
        least=settings.least_time_ms / 1000,
        margin=settings.answer_margin_ms / 1000,
        retry_after=settings.retry_after_seconds,
        record=settings.attempt_deadline_seconds,
    )


if __name__ == "__main__":
    main(run)
