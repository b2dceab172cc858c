"""The ledger sums to zero, and says of each deposit what the deposit says of itself."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from dinemesh.kit import currency
from operations.limits import Limits
from operations.money import per_currency
from operations.picture import Deposit, Picture
from operations.report import Finding, Violation

NAME = "ledger"
_STOP = (
    "Stop charging (make stop SERVICE=deposit) and compare the deposit's ledger entries with the provider."
)


def check(picture: Picture, limits: Limits) -> Finding:
    total = per_currency((balance.amount_minor, balance.currency) for balance in picture.balances)
    looked_at = f"{len(picture.deposits)} deposits; all entries sum to {total}"
    return Finding(NAME, looked_at, (*_sums(picture), *_balances(picture), *_parts(picture)))


def _sums(picture: Picture) -> Iterator[Violation]:
    totals: dict[str, int] = defaultdict(int)
    for balance in picture.balances:
        totals[balance.currency] += balance.amount_minor
    for code, total in totals.items():
        if total:
            what = f"the ledger sums to {currency.text(total, code)} instead of zero"
            yield Violation(NAME, code, what, _STOP)
    for movement in picture.unbalanced:
        sums_to = currency.text(movement.amount_minor, movement.currency)
        what = f"its entries sum to {sums_to} instead of zero"
        yield Violation(NAME, movement.movement_id, what, _STOP)


def _balances(picture: Picture) -> Iterator[Violation]:
    accounts: dict[tuple[str, str], int] = defaultdict(int)
    for balance in picture.balances:
        accounts[balance.deposit_id, balance.account] += balance.amount_minor
        if balance.deposit_id not in picture.deposits:
            what = "the ledger speaks of a deposit that does not exist"
            yield Violation(NAME, balance.deposit_id, what, _STOP)
        elif balance.currency != picture.deposits[balance.deposit_id].currency:
            what = f"the ledger has it in {balance.currency}, the deposit is in another currency"
            yield Violation(NAME, f"{balance.deposit_id} {balance.account} {balance.kind}", what, _STOP)
    for deposit in picture.deposits.values():
        for account, expected in _expected(deposit).items():
            found = accounts[deposit.deposit_id, account]
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


def _parts(picture: Picture) -> Iterator[Violation]:
    """The amounts on a deposit are the sums of its refunds and forfeits."""
    sums: dict[tuple[str, str], int] = defaultdict(int)
    for refund in picture.refunds:
        sums[refund.deposit_id, refund.state] += refund.amount_minor
    for forfeit in picture.forfeits:
        sums[forfeit.deposit_id, "FORFEITED"] += forfeit.amount_minor
    for deposit in picture.deposits.values():
        for state, said in (
            ("PENDING", deposit.refunding_minor),
            ("SUCCEEDED", deposit.refunded_minor),
            ("FAILED", deposit.refund_failed_minor),
            ("FORFEITED", deposit.forfeited_minor),
        ):
            found = sums[deposit.deposit_id, state]
            if found != said:
                what = (
                    f"its parts in state {state} sum to {deposit.money(found)}, it says {deposit.money(said)}"
                )
                yield Violation(NAME, f"{deposit.deposit_id} {state}", what, _STOP)
