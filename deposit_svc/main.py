"""The deposit service: `python -m deposit_svc.main`. Builds and names every part; the kit closes them."""

from __future__ import annotations

from deposit_svc import handlers, messages, persistence, servicer
from deposit_svc.provider.sandbox import SandboxProvider
from deposit_svc.settings import DepositSettings
from deposit_svc.usecases import Deposits, Limits
from dinemesh.deposit.v1 import deposit_service_pb2_grpc, events_pb2
from dinemesh.kit.bus import Bus
from dinemesh.kit.canaries import Canaries, routing_keys
from dinemesh.kit.consumer import Consumer
from dinemesh.kit.outbox import Outbox
from dinemesh.kit.relay import Relay
from dinemesh.kit.retention import expiring_inbox, expiring_outbox
from dinemesh.kit.service import Service, main
from dinemesh.kit.settings import load
from dinemesh.kit.workers import Periodic


async def run() -> None:
    """Serves until told to stop; a wrong setting ends the process before anything is opened."""
    settings = load(DepositSettings)
    service = Service("deposit", settings)
    store = service.open_store("deposit_svc")

    bus = Bus(settings.amqp_url, "deposit")
    outbox = Outbox(persistence.outbox, messages.encode_event, source="deposit")
    provider = SandboxProvider(settings.sandbox_address, settings.provider_timeout_ms / 1000)
    service.on_close(provider.aclose)
    deposits = Deposits(store, outbox, provider, service.background, _limits(settings))
    reconciling = Periodic("reconciling", settings.settle_interval_seconds, deposits.reconcile)
    deposits.on_open(reconciling.wake)

    service.add_servicer(
        deposit_service_pb2_grpc.add_DepositServiceServicer_to_server,
        servicer.DepositServicer(deposits),
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
            persistence.inbox.canaries,
            routing_keys(events_pb2.DESCRIPTOR),
            seconds=settings.canary_seconds,
        ),
    )
    service.add_worker(reconciling, "reconciling")
    subscription = handlers.subscription(deposits)
    service.add_consumer(Consumer(store, bus, persistence.inbox, subscription))
    expiring = [expiring_outbox(persistence.outbox), *expiring_inbox(persistence.inbox, subscription)]
    service.add_retention(store, persistence.retention, expiring)
    await service.run()


def _limits(settings: DepositSettings) -> Limits:
    return Limits(
        charges_in_flight=settings.charges_in_flight_limit,
        charge_timeout_seconds=settings.charge_timeout_ms / 1000,
        pending_settle_seconds=settings.pending_settle_seconds,
        settle_lease_seconds=settings.settle_lease_seconds,
        settle_at_once=settings.settle_at_once,
    )


if __name__ == "__main__":
    main(run)
