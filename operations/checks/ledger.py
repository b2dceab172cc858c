"""The ledger sums to zero, and says of each deposit what the deposit says of itself."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from dinemesh.kit import currency
from operations.checks.check import Check
from operations.limits import Limits
from operations.money import per_currency
from operations.report import Violation
from operations.rows import Deposit
from operations.snapshot import About, Snapshot

NAME = "ledger"
_STOP = (
    "Stop charging (make stop SERVICE=deposit) and compare the deposit's ledger entries with the provider."
)


class Ledger(Check):
    """Checks that each movement and each currency sums to zero, and that accounts, refunds and forfeits match
    the amounts on their deposit."""

    name = NAME
    needs = ("deposit_db",)
    about = frozenset({About.DEPOSITS})

    def __init__(self, limits: Limits) -> None:
        super().__init__(limits)
        self._deposits = 0
        self._totals: dict[str, int] = {}

    def look(self, part: Snapshot) -> None:
        self._deposits += len(part.deposits)
        for entry in part.entries:
            self._totals[entry.currency] = self._totals.get(entry.currency, 0) + entry.amount_minor
        self.add((*_movements(part), *_balances(part), *_parts(part)))

    def looked_at(self) -> str:
        total = per_currency((minor, code) for code, minor in self._totals.items())
        return f"{self._deposits} deposits; all entries sum to {total}"

    def at_last(self) -> Iterator[Violation]:
        for code, total in self._totals.items():
            if total:
                what = f"the ledger sums to {currency.text(total, code)} instead of zero"
                yield Violation(NAME, code, what, _STOP)


def _movements(snapshot: Snapshot) -> Iterator[Violation]:
    sums: dict[tuple[str, str], int] = defaultdict(int)
    for entry in snapshot.entries:
        sums[entry.movement_id, entry.currency] += entry.amount_minor
    for (movement_id, code), total in sums.items():
        if total:
            what = f"its entries sum to {currency.text(total, code)} instead of zero"
            yield Violation(NAME, movement_id, what, _STOP)


def _balances(snapshot: Snapshot) -> Iterator[Violation]:
    accounts: dict[tuple[str, str], int] = defaultdict(int)
    for entry in snapshot.entries:
        accounts[entry.deposit_id, entry.account] += entry.amount_minor
        deposit = snapshot.deposits.get(entry.deposit_id)
        if deposit is None:
            what = "the ledger speaks of a deposit that does not exist"
            yield Violation(NAME, entry.deposit_id, what, _STOP)
        elif entry.currency != deposit.currency:
            what = f"the ledger has it in {entry.currency}, the deposit is in another currency"
            yield Violation(NAME, f"{entry.deposit_id} {entry.account} {entry.kind}", what, _STOP)
    for deposit in snapshot.deposits.values():
        for account, expected in _expected(deposit).items():
            found = accounts.get((deposit.deposit_id, account), 0)
            if found != expected:
                by_deposit = deposit.money(expected)
                what = f"{account} is {deposit.money(found)} in the ledger, {by_deposit} by the deposit"
                yield Violation(NAME, f"{deposit.deposit_id} {account}", what, _STOP)


def _expected(deposit: Deposit) -> dict[str, int]:
    """Debits above zero, credits below."""
    return {
        "PROVIDER_CLEARING": deposit.captured_minor - deposit.refunded_minor,
        "CUSTOMER_DEPOSITS": -deposit.held,
        "REFUNDS_PAYABLE": -deposit.refunding_minor,
        "REFUNDS_FAILED": -deposit.refund_failed_minor,
        "FORFEITURE_INCOME": -deposit.forfeited_minor,
    }


def _parts(snapshot: Snapshot) -> Iterator[Violation]:
    """The amounts on a deposit are the sums of its refunds and forfeits."""
    sums: dict[tuple[str, str], int] = defaultdict(int)
    for refund in snapshot.refunds:
        sums[refund.deposit_id, refund.state] += refund.amount_minor
    for forfeit in snapshot.forfeits:
        sums[forfeit.deposit_id, "FORFEITED"] += forfeit.amount_minor
    for deposit in snapshot.deposits.values():
        for state, said in (
            ("PENDING", deposit.refunding_minor),
            ("SUCCEEDED", deposit.refunded_minor),
            ("FAILED", deposit.refund_failed_minor),
            ("FORFEITED", deposit.forfeited_minor),
        ):
            found = sums.get((deposit.deposit_id, state), 0)
            if found != said:
                what = (
                    f"its parts in state {state} sum to {deposit.money(found)}, it says {deposit.money(said)}"
                )
                yield Violation(NAME, f"{deposit.deposit_id} {state}", what, _STOP)
