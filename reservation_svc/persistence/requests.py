"""Request ids: one row per customer and id, pointing at the latest attempt."""

from __future__ import annotations

from sqlalchemy import bindparam, select, update
from sqlalchemy.dialects import postgresql, sqlite

from dinemesh.kit.retention import Expiring
from dinemesh.kit.store import Transaction
from reservation_svc.domain import FINAL, RequestRecord
from reservation_svc.persistence.tables import requests, reservations

_MINE = (requests.c.customer_id == bindparam("of_customer"), requests.c.request_id == bindparam("of_request"))
_FIND = select(requests.c.body_hash, requests.c.reservation_id, requests.c.modification_id).where(*_MINE)
_INSERT = {
    "sqlite": sqlite.insert(requests).on_conflict_do_nothing(),
    "postgresql": postgresql.insert(requests).on_conflict_do_nothing(),
}
_REPOINT = (
    update(requests)
    .where(
        *_MINE,
        requests.c.reservation_id == bindparam("old_reservation"),
        requests.c.modification_id.is_not_distinct_from(bindparam("old_modification")),
    )
    .values(reservation_id=bindparam("new_reservation"), modification_id=bindparam("new_modification"))
)

# A request id is needed for as long as what it led to can change, and the retention begins only then.
_FINAL = sorted(state.value for state in FINAL)
_ENDED = (
    select(reservations.c.update_time)
    .where(reservations.c.reservation_id == requests.c.reservation_id, reservations.c.state.in_(_FINAL))
    .scalar_subquery()
)
EXPIRING = Expiring(
    "requests", requests, (requests.c.customer_id, requests.c.request_id), _ENDED, in_order=False
)


def find(tx: Transaction, customer_id: str, request_id: str) -> RequestRecord | None:
    """What the customer's request id led to last; None if it was never used, or is past its retention."""
    row = tx.execute(_FIND, {"of_customer": customer_id, "of_request": request_id}).one_or_none()
    return None if row is None else RequestRecord(row.body_hash, row.reservation_id, row.modification_id)


def point(
    tx: Transaction, customer_id: str, request_id: str, old: RequestRecord | None, new: RequestRecord
) -> bool:
    """Inserts the row, or points it from the attempt `old` at `new`. False: another process was faster."""
    if old is None:
        values = {
            "customer_id": customer_id,
            "request_id": request_id,
            "body_hash": new.body_hash,
            "reservation_id": new.reservation_id,
            "modification_id": new.modification_id,
        }
        return tx.changed(_INSERT[tx.dialect], values) == 1
    parameters = {
        "of_customer": customer_id,
        "of_request": request_id,
        "old_reservation": old.reservation_id,
        "old_modification": old.modification_id,
        "new_reservation": new.reservation_id,
        "new_modification": new.modification_id,
    }
    return tx.changed(_REPOINT, parameters) == 1
