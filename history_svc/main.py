"""The history service: `python -m history_svc.main`; `rebuild` makes the view anew from the events."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass

from dinemesh.history.v1 import history_service_pb2_grpc
from dinemesh.kit import log as logs
from dinemesh.kit import migrate, service
from dinemesh.kit.bus import Bus
from dinemesh.kit.consumer import Consumer
from dinemesh.kit.inbox import Inbox, Subscription, Undecodable
from dinemesh.kit.refusal import Refusal
from dinemesh.kit.retention import expiring_inbox
from dinemesh.kit.service import Service
from dinemesh.kit.settings import load
from dinemesh.kit.store import Store, StoreInUse
from dinemesh.kit.workers import cancel
from history_svc import handlers, messages, persistence
from history_svc.domain import Archived, Entry
from history_svc.servicer import ACCESS, SERVICE_NAME, HistoryServicer
from history_svc.settings import HistorySettings
from history_svc.usecases import Digest, Remade, Timeline

NAME = "history"
PACKAGE = "history_svc"

# The rebuild does without the log when the broker is not reached within this time.
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
    subscription = handlers.subscription(timeline)
    process.add_consumer(Consumer(store, bus, persistence.inbox, subscription))
    process.add_retention(store, persistence.retention, expiring_inbox(persistence.inbox, subscription))
    process.add_servicer(
        history_service_pb2_grpc.add_HistoryServiceServicer_to_server,
        HistoryServicer(timeline, process.changes, process.pace),
        SERVICE_NAME,
        ACCESS,
    )
    await process.run()


async def rebuild() -> None:
    """Make the view anew from the events that history has kept, and from the log, with the live service
    stopped."""
    settings = load(HistorySettings)
    # For a person at a terminal: the outcome, and only what is in its way.
    logs.setup(NAME, "WARNING", sys.stderr)
    await asyncio.to_thread(migrate.upgrade, settings.database_url, PACKAGE)
    store = open_store(settings, patient=True)
    try:
        done = await rebuild_view(store, settings.amqp_url)
    finally:
        await store.close()
    sys.stdout.write(f"history: {done}\n")
    if done.remade.unreadable:
        sys.exit(
            "Events that cannot be read are of a newer version, or damaged; their entries were left alone."
        )


@dataclass(frozen=True)
class Rebuilt:
    """The view before and after, and what was read for it; without a broker no log."""

    before: Digest
    after: Digest
    remade: Remade
    log_was_read: bool

    def __str__(self) -> str:
        sources = "history's own archive and the log" if self.log_was_read else "history's own archive"
        said = f"{self.remade.events} events read from {sources}; {self.after.entries} entries"
        said += f", {self.remade.changed} of them made anew" if self.remade.changed else ""
        if self.remade.without_event:
            said += f", {self.remade.without_event} left as they are: their events were never archived"
        said += "; the same as before" if self.before == self.after else "; not the same as before"
        if not self.log_was_read:
            said += "\nThe broker was not reached: what the log has besides was not read"
        return said


async def rebuild_view(store: Store, amqp_url: str) -> Rebuilt:
    """Take from the log what is missing here, then make every entry anew whose event is here. Cut off
    halfway, the next start of the service reads the rest of the log; entries are as they were, or anew."""
    timeline = Timeline(store, lambda _customer_id: None)
    subscription = handlers.subscription(timeline)
    inbox = Inbox(store, persistence.inbox, subscription)

    def read(event: Archived) -> Entry | None:
        try:
            return messages.from_event(inbox.decode(event.envelope))
        except (Undecodable, Refusal):
            return None

    before = await timeline.digest()
    log_was_read = await _read_log(store, amqp_url, timeline, subscription)
    remade = await timeline.remake(read)
    return Rebuilt(before, await timeline.digest(), remade, log_was_read)


async def _read_log(store: Store, amqp_url: str, timeline: Timeline, subscription: Subscription) -> bool:
    """False if there is no broker to read from; then nothing is forgotten either."""
    bus = Bus(amqp_url, f"{NAME}.rebuild")
    consumer = Consumer(store, bus, persistence.inbox, subscription)
    connecting = asyncio.create_task(bus.run())
    try:
        if not await bus.wait_connected(CONNECT_SECONDS):
            return False
        await timeline.forget(handlers.QUEUE)
        reading = asyncio.create_task(consumer.run())
        try:
            await consumer.caught_up.wait()
        finally:
            await cancel(reading)
        return True
    finally:
        await cancel(connecting)


def open_store(settings: HistorySettings, *, patient: bool = False) -> Store:
    """Connects at the first use; `patient` is for a rebuild, whose statements may take minutes. Raises
    StoreInUse if another process holds the file."""
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
        except StoreInUse as error:
            sys.exit(f"history: {error}")
    else:
        sys.exit("usage: python -m history_svc.main [rebuild]")


if __name__ == "__main__":
    main(sys.argv[1:])
