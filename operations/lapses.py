"""An operator's word that the clock is right: what was held back may end, up to the time looked at."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from dinemesh.kit.instants import from_micros, to_micros
from dinemesh.kit.store import Store, StoreUnavailable, Transaction
from operations.events import existing
from operations.refunds import NotDone

_HELD = text("SELECT trusted_time, held_time, held_count FROM reconcile_clock WHERE held_time IS NOT NULL")
_LET = text(
    "UPDATE reconcile_clock SET trusted_time = :until, held_time = NULL, held_count = 0, alive_count = 0"
    " WHERE held_time = :seen"
)


async def let_lapse(database_url: str, until: datetime) -> str:
    """Lets the bookings end that were due by `until`, a time of reservation's database; the running service
    does it within seconds. What becomes due later is judged by itself, so a second jump needs a second word.
    Answers with what was done. Raises NotDone for a time that nobody has looked at, Unwritable."""
    name = existing(database_url)
    moment = to_micros(until)

    def change(tx: Transaction) -> str:
        held = tx.execute(_HELD).one_or_none()
        if held is None or (held.trusted_time is not None and moment <= held.trusted_time):
            return f"nothing that was due by {_told(moment)} is held back"
        if moment > held.held_time:
            raise NotDone(
                f"the bookings were counted at {_told(held.held_time)}; nobody has seen what is due by"
                f" {_told(moment)}: look at `make pending`"
            )
        tx.execute(_LET, {"until": moment, "seen": held.held_time})
        return f"{held.held_count} bookings were held back; those due by {_told(moment)} end now"

    # The service may be running: not exclusive. Each engine orders the two writers.
    store = Store.open(database_url, exclusive=False, readers=1)
    try:
        return await store.write(change)
    except (DBAPIError, StoreUnavailable) as error:
        raise NotDone(f"{name}: {getattr(error, 'orig', error)}") from error
    finally:
        await store.close()


def _told(microseconds: int) -> str:
    moment = from_micros(microseconds)
    return moment.isoformat().replace("+00:00", "Z")
