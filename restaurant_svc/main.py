"""The restaurant service as one process: its parts, and how they hang together."""

from __future__ import annotations

from dinemesh.kit.bus import Bus
from dinemesh.kit.canaries import Canaries, routing_keys
from dinemesh.kit.consumer import Consumer
from dinemesh.kit.outbox import Outbox
from dinemesh.kit.quota import Quota
from dinemesh.kit.relay import Relay
from dinemesh.kit.retention import expiring_inbox, expiring_outbox
from dinemesh.kit.service import Service, main
from dinemesh.kit.settings import load
from dinemesh.restaurant.v1 import events_pb2
from dinemesh.restaurant.v1.restaurant_service_pb2_grpc import add_RestaurantServiceServicer_to_server
from restaurant_svc import handlers, messages, persistence
from restaurant_svc.servicer import ACCESS, SERVICE_NAME, RestaurantServicer
from restaurant_svc.settings import RestaurantSettings
from restaurant_svc.usecases import Restaurants


def build(settings: RestaurantSettings) -> Service:
    """The service with all its parts; `run` starts them."""
    service = Service("restaurant", settings)
    store = service.open_store("restaurant_svc")
    outbox = Outbox(persistence.outbox, messages.encode_event, service.name)
    bus = Bus(settings.amqp_url, service.name)
    restaurants = Restaurants(store, outbox, changed=service.changes.notify, quota=quota(settings))

    service.add_worker(bus, "bus")
    service.add_relay(
        Relay(store, outbox, bus, events_in_message=settings.events_in_message),
        Canaries(
            store,
            bus,
            outbox,
            persistence.inbox.canaries,
            routing_keys(events_pb2.DESCRIPTOR),
            seconds=settings.canary_seconds,
        ),
    )
    subscription = handlers.subscription(restaurants)
    service.add_consumer(Consumer(store, bus, persistence.inbox, subscription))
    expiring = [
        expiring_outbox(persistence.outbox),
        *expiring_inbox(persistence.inbox, subscription),
        persistence.EXPIRING_REQUESTS,
    ]
    service.add_retention(store, persistence.retention, expiring)
    service.add_servicer(
        add_RestaurantServiceServicer_to_server,
        RestaurantServicer(restaurants, service.changes, service.pace),
        SERVICE_NAME,
        ACCESS,
    )
    return service


def quota(settings: RestaurantSettings) -> Quota:
    """What one restaurant may change."""
    return Quota(
        at_once=settings.changes_at_once,
        per_second=settings.changes_per_second,
        burst=settings.changes_burst,
    )


async def run() -> None:
    """Until SIGTERM or SIGINT."""
    await build(load(RestaurantSettings)).run()


if __name__ == "__main__":
    main(run)
