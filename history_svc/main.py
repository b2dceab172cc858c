"""The history service: `python -m history_svc.main`; with `rebuild` it makes the view again from the log."""

from __future__ import annotations

import asyncio
import sys

from dinemesh.history.v1 import history_service_pb2_grpc
from dinemesh.kit import log as logs
from dinemesh.kit import migrate, service
from dinemesh.kit.bus import Bus, BusUnavailable
from dinemesh.kit.consumer import Consumer
from dinemesh.kit.service import Service
from dinemesh.kit.settings import load
from dinemesh.kit.store import Store, StoreInUse
from dinemesh.kit.workers import cancel
from history_svc import handlers, persistence
from history_svc.servicer import ACCESS, HistoryServicer
from history_svc.settings import HistorySettings
from history_svc.usecases import Digest, Timeline

NAME = "history"
PACKAGE = "history_svc"

# The rebuild gives up, with nothing changed, when the broker is not reached within this time.
CONNECT_SECONDS = 10.0


async def run() -> None:
    """Serve until told to stop."""
    settings = load(HistorySettings)
    process = Service(NAME, settings)
    store = open_store(settings)
    timeline = Timeline(store, process.changes.notify)
    bus = Bus(settings.amqp_url, NAME)

    process.use_store(store, PACKAGE)
    process.add_worker(bus, "bus")
    process.add_consumer(Consumer(store, bus, persistence.inbox, handlers.subscription(timeline)))
    process.add_servicer(
        history_service_pb2_grpc.add_HistoryServiceServicer_to_server,
        HistoryServicer(timeline, process.changes, process.pace),
        "dinemesh.history.v1.HistoryService",
        ACCESS,
    )
    await process.run()


async def rebuild() -> None:
    """Drop the view and read the whole log into it again, with the live service stopped."""
    settings = load(HistorySettings)
    # For a person at a terminal: the outcome, and only what is in its way.
    logs.setup(NAME, "WARNING", sys.stderr)
    await asyncio.to_thread(migrate.upgrade, settings.database_url, PACKAGE)
    store = open_store(settings, patient=True)
    try:
        before, after = await rebuild_view(store, settings.amqp_url)
    finally:
        await store.close()
    same = "the same as before" if before == after else "not the same as before"
    told = f"history: {before.entries} entries dropped, {after.entries} read from the log; {same}\n"
    sys.stdout.write(told)
    if after.entries < before.entries:
        sys.exit(
            "The log lacks events, as a new broker's does. "
            "Publish them again (make replay SERVICE=all); they follow."
        )


async def rebuild_view(store: Store, amqp_url: str) -> tuple[Digest, Digest]:
    """The digests before and after. Cut off halfway, the next start of the service reads the rest.

    Raises BusUnavailable, with the view untouched, when there is no broker to read from.
    """
    timeline = Timeline(store, lambda _customer_id: None)
    bus = Bus(amqp_url, f"{NAME}.rebuild")
    consumer = Consumer(store, bus, persistence.inbox, handlers.subscription(timeline))
    connecting = asyncio.create_task(bus.run())
    try:
        if not await bus.wait_connected(CONNECT_SECONDS):
            raise BusUnavailable(
                f"the broker was not reached within {CONNECT_SECONDS:g} s; nothing was changed"
            )
        before = await timeline.digest()
        await timeline.drop(handlers.QUEUE)
        reading = asyncio.create_task(consumer.run())
        try:
            await consumer.caught_up.wait()
        finally:
            await cancel(reading)
        return before, await timeline.digest()
    finally:
        await cancel(connecting)


def open_store(settings: HistorySettings, *, patient: bool = False) -> Store:
    return Store.open(
        settings.database_url,
        group=settings.group_commit,
        queue_limit=settings.store_queue_limit,
        readers=settings.reader_threads,
        patient=patient,
    )


def main(arguments: list[str]) -> None:
    """The command line."""
    if not arguments:
        service.main(run)
    elif arguments == ["rebuild"]:
        try:
            asyncio.run(rebuild())
        except (BusUnavailable, StoreInUse) as error:
            sys.exit(f"history: {error}")
    else:
        sys.exit("usage: python -m history_svc.main [rebuild]")


if __name__ == "__main__":
    main(sys.argv[1:])
