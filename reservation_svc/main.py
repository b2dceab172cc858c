"""The reservation service: `python -m reservation_svc.main`. Builds and names every part; the kit closes
them in reverse."""

from __future__ import annotations

from datetime import timedelta
from functools import partial

from dinemesh.kit.bus import Bus
from dinemesh.kit.canaries import Canaries, routing_keys
from dinemesh.kit.channel import ServiceToken
from dinemesh.kit.consumer import Consumer
from dinemesh.kit.outbox import Outbox
from dinemesh.kit.relay import Relay
from dinemesh.kit.retention import expiring_inbox, expiring_outbox
from dinemesh.kit.service import Service, main
from dinemesh.kit.settings import load
from dinemesh.kit.workers import Periodic
from dinemesh.reservation.v1 import events_pb2, reservation_service_pb2_grpc
from reservation_svc import handlers, messages, servicer
from reservation_svc.clients.deposit import DepositClient
from reservation_svc.domain import Rules
from reservation_svc.persistence import requests, tables
from reservation_svc.settings import ReservationSettings
from reservation_svc.usecases.admission import Admission
from reservation_svc.usecases.bulkhead import Bulkhead
from reservation_svc.usecases.circuit_breaker import Thresholds
from reservation_svc.usecases.context import Limits, ReservationContext
from reservation_svc.usecases.reconcile import reconcile


async def run() -> None:
    """Serves until told to stop; a wrong setting ends the process before anything is opened."""
    settings = load(ReservationSettings)
    service = Service("reservation", settings)
    store = service.open_store("reservation_svc")

    bus = Bus(settings.amqp_url, "reservation")
    outbox = Outbox(tables.outbox, messages.encode_event, source="reservation")
    token = ServiceToken(settings.token_file) if settings.token_file is not None else None
    deposits = DepositClient(settings.deposit_address, token)
    service.on_close(deposits.close)
    bulkhead = Bulkhead(
        places=settings.charges_at_once,
        queue_limit=settings.charge_queue_limit,
        per_customer=settings.customer_attempts_limit,
    )
    admission = Admission(
        bulkhead,
        thresholds=Thresholds(
            window_seconds=settings.breaker_window_seconds,
            window_calls=settings.breaker_window_calls,
            failures=settings.breaker_failures,
            customers=settings.breaker_customers,
            share=settings.breaker_share,
        ),
        rest_seconds=settings.breaker_rest_seconds,
        longest_rest_seconds=settings.breaker_longest_rest_seconds,
        is_healthy=deposits.is_healthy,
    )
    ctx = ReservationContext(
        store=store,
        outbox=outbox,
        deposits=deposits,
        admission=admission,
        background=service.background,
        rules=rules(settings),
        limits=limits(settings),
        tell=service.changes.notify,
    )

    service.add_servicer(
        reservation_service_pb2_grpc.add_ReservationServiceServicer_to_server,
        servicer.ReservationServicer(ctx, service.changes, service.pace),
        servicer.SERVICE_NAME,
        servicer.ACCESS,
    )
    service.add_worker(bus, "bus")
    service.add_relay(
        Relay(store, outbox, bus, events_in_message=settings.events_in_message),
        Canaries(
            store,
            bus,
            outbox,
            tables.inbox.canaries,
            routing_keys(events_pb2.DESCRIPTOR),
            seconds=settings.canary_seconds,
        ),
    )
    service.add_worker(admission, "circuit breaker")
    service.add_worker(
        Periodic("reconciling", settings.settle_interval_seconds, partial(reconcile, ctx)), "reconciling"
    )
    subscriptions = handlers.restaurants(ctx), handlers.deposits(ctx)
    for subscription in subscriptions:
        service.add_consumer(Consumer(store, bus, tables.inbox, subscription))
    expiring = [
        expiring_outbox(tables.outbox),
        *expiring_inbox(tables.inbox, *subscriptions),
        requests.EXPIRING,
    ]
    service.add_retention(store, tables.retention, expiring)
    await service.run()


def rules(settings: ReservationSettings) -> Rules:
    """The domain's time limits and quotas, from the settings that are in seconds and days."""
    return Rules(
        attempt=timedelta(seconds=settings.attempt_deadline_seconds),
        hold=timedelta(seconds=settings.hold_expire_seconds),
        unmarked=timedelta(seconds=settings.unmarked_seconds),
        horizon=timedelta(days=settings.horizon_days),
        attempts=settings.customer_attempts_limit,
        held_seats=settings.customer_held_seats_limit,
        unpaid_free=settings.unpaid_attempts_free,
        unpaid_pause=timedelta(seconds=settings.unpaid_pause_seconds),
        unpaid_window=timedelta(seconds=settings.unpaid_window_seconds),
        lapse_share=settings.lapse_share,
        lapse_floor=settings.lapse_floor,
    )


def limits(settings: ReservationSettings) -> Limits:
    """The times of one attempt in seconds, from settings that are partly in milliseconds."""
    return Limits(
        deposit_deadline=settings.deposit_deadline_ms / 1000,
        least=settings.least_time_ms / 1000,
        margin=settings.answer_margin_ms / 1000,
        retry_after=settings.retry_after_seconds,
        record=settings.attempt_deadline_seconds,
        queue=settings.charge_queue_seconds,
    )


if __name__ == "__main__":
    main(run)
