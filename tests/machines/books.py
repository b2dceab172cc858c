"""What is true of the books of reservation and deposit at every moment, whatever is on its way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import func, select

from deposit_svc import domain as deposits
from deposit_svc import persistence as deposit_persistence
from dinemesh.kit.store import Transaction
from reservation_svc.domain import BOOKED, Order, Reservation, State
from reservation_svc.persistence import tables
from tests.machines.database import InlineStore
from tests.machines.provider import Provider


def check_seats(store: InlineStore, every: Sequence[Reservation], most: int) -> None:
    """Promise 3: what is sold is what reservations hold, and never more than there ever was."""
    held: Counter[tuple[str, datetime]] = Counter()
    for one in every:
        for dine_time, seats in one.seats.items():
            held[one.restaurant_id, dine_time] += seats
    slots = store.look(lambda tx: tx.execute(select(tables.slots)).all())
    sold = {(slot.restaurant_id, slot.dine_time): slot.sold for slot in slots if slot.sold}
    assert sold == dict(held), "seats sold are not the seats that reservations hold"
    assert all(seats <= most for seats in sold.values()), "oversold"


def check_deposits_of_bookings(every: Sequence[Reservation]) -> None:
    """Promise 1, as reservation sees it: no booking without its whole deposit, nothing held for any other."""
    for one in every:
        if one.state in BOOKED:
            assert one.held_total == one.terms.price, "a booking without its deposit"
        elif one.state is not State.PENDING_DEPOSIT:
            assert one.held_total == 0, f"{one.state} and still holds {one.held_total}"
        for order in one.instructions:
            line = one.line(order.deposit_id)
            assert line is not None and one.held[line.deposit_id] >= 0, "more is ordered than there is"


def check_one_reservation_a_request(every: Sequence[Reservation]) -> None:
    """Promise 2. The note of a reservation is its request id here."""
    standing = Counter((one.customer_id, one.note) for one in every if one.state is not State.FAILED)
    assert not [key for key, times in standing.items() if times > 1], "one request id, two reservations"


def check_terms_were_shown(every: Sequence[Reservation], asked: Sequence[Order]) -> None:
    """Promise 11: nobody is charged, or held to, terms other than those that they were shown."""
    shown = {(order.customer_id, order.request_id): order.policy_etag for order in asked}
    for one in every:
        assert one.policy.etag == shown[one.customer_id, one.note], "held to terms that were never shown"
        assert one.terms.price == one.policy.price(one.terms.party_size)


def check_ledger(store: InlineStore, every: Sequence[deposits.Deposit], provider: Provider) -> None:
    """Promise 1, as deposit and the provider see it."""
    entries = deposit_persistence.ledger_entries

    def query(tx: Transaction) -> tuple[int, dict[tuple[str, str], int]]:
        wrong = select(entries.c.movement_id).group_by(entries.c.movement_id)
        wrong = wrong.having(func.sum(entries.c.amount_minor) != 0)
        sums = select(
            entries.c.deposit_id, entries.c.account, func.sum(entries.c.amount_minor).label("minor")
        )
        found = tx.execute(sums.group_by(entries.c.deposit_id, entries.c.account))
        balances = {(row.deposit_id, row.account): int(row.minor) for row in found}
        return len(tx.execute(wrong).all()), balances

    unbalanced, balances = store.look(query)
    assert not unbalanced, "a movement whose entries do not sum to zero"
    for deposit in every:
        for account, expected in (
            (deposits.Account.PROVIDER_CLEARING, deposit.captured - deposit.refunded),
            (deposits.Account.CUSTOMER_DEPOSITS, -deposit.held),
            (deposits.Account.REFUNDS_PAYABLE, -deposit.refunding),
            (deposits.Account.REFUNDS_FAILED, -deposit.refund_failed),
            (deposits.Account.FORFEITURE_INCOME, -deposit.forfeited),
        ):
            found = balances.get((deposit.deposit_id, account.value), 0)
            assert found == expected, f"{account.value} is {found}, and {expected} by the deposit"
        charged, returned = provider.charged(deposit.deposit_id), provider.returned(deposit.deposit_id)
        assert deposit.captured <= charged, "captured, and the provider charged nothing"
        assert deposit.refunded <= returned <= deposit.refunded + deposit.refunding
        if deposit.state in (deposits.State.DECLINED, deposits.State.VOIDED):
            assert charged == 0, f"{deposit.state.value}, and the provider has charged it"


def check_all_is_settled(every: Sequence[deposits.Deposit], provider: Provider) -> None:
    """At rest each cent that was charged is held, returned or kept, and nothing waits."""
    known = {deposit.deposit_id for deposit in every}
    for key in provider.charges:
        assert key in known, "a charge that deposit does not know"
    for deposit in every:
        assert not deposit.is_open, f"{deposit.standing.value} at rest"
        assert deposit.captured == provider.charged(deposit.deposit_id)
        assert deposit.refunded == provider.returned(deposit.deposit_id)
        assert deposit.captured == deposit.held + deposit.refunded + deposit.forfeited
