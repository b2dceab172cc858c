"""What the provider charged and returned is what the ledger says, deposit by deposit."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping

from dinemesh.kit import currency
from operations.checks.check import Check
from operations.limits import Limits
from operations.money import per_currency
from operations.report import Violation
from operations.rows import Charge, Deposit, Refund
from operations.snapshot import About, Snapshot

NAME = "provider"
_UNDECIDED = ("PENDING", "VOIDING")


class Provider(Check):
    """Compares captured charges and succeeded refunds with the ledger, in minor units. The charge of a
    deposit that is in doubt (PENDING, VOIDING) is left to the check "pending"."""

    name = NAME
    needs = ("deposit_db", "provider")
    about = frozenset({About.DEPOSITS})

    def __init__(self, limits: Limits) -> None:
        super().__init__(limits)
        self._charges = self._refunds = 0
        self._charged: dict[str, int] = {}
        self._returned: dict[str, int] = {}

    def look(self, part: Snapshot) -> None:
        for charge in part.charges:
            if charge.captured:
                self._charges += 1
                self._charged[charge.currency] = self._charged.get(charge.currency, 0) + charge.minor
                for refund in charge.refunds:
                    if refund.succeeded:
                        self._refunds += 1
                        self._returned[refund.currency] = (
                            self._returned.get(refund.currency, 0) + refund.minor
                        )
        self.add((*_charges(part), *_refunds(part)))

    def looked_at(self) -> str:
        charged, returned = (
            per_currency((minor, code) for code, minor in sums.items())
            for sums in (self._charged, self._returned)
        )
        return f"{self._charges} charges of {charged} and {self._refunds} refunds of {returned}"


def _charges(snapshot: Snapshot) -> Iterator[Violation]:
    ledger = _ledger(snapshot, "CHARGE_CAPTURED")
    currencies = {entry.deposit_id: entry.currency for entry in snapshot.entries}
    recorded = {charge.key: charge for charge in snapshot.charges if charge.captured}
    for key, charge in recorded.items():
        deposit = snapshot.deposits.get(key)
        if deposit is None:
            what = f"{currency.text(charge.minor, charge.currency)} were charged under an unknown key"
            yield Violation(NAME, key, what, "Refund it at the provider; find out what made the charge.")
        elif deposit.state in _UNDECIDED:
            continue  # being reconciled; its time limit is the business of the check "pending"
        elif charge.currency != deposit.currency:
            what = f"the provider charged {charge.currency}, the deposit is in {deposit.currency or 'none'}"
            yield Violation(NAME, key, what, _BY_HAND)
        elif ledger[key] != charge.minor:
            charged, known = deposit.money(charge.minor), deposit.money(ledger[key])
            what = f"{deposit.state}: the provider charged {charged}, the ledger has {known}"
            yield Violation(
                NAME, key, what, "Find out how it was decided without the provider; correct by hand."
            )
    for key, minor in ledger.items():
        if minor and key not in recorded:
            amount = currency.text(minor, currencies[key])
            what = f"the ledger has a charge of {amount} that the provider does not know"
            yield Violation(NAME, key, what, "Do not refund it. Compare with the provider's statement.")


def _refunds(snapshot: Snapshot) -> Iterator[Violation]:
    ledger = _ledger(snapshot, "REFUND_SUCCEEDED")
    pending: dict[str, list[Refund]] = defaultdict(list)
    known = {refund.refund_id for refund in snapshot.refunds}
    for refund in snapshot.refunds:
        if refund.state == "PENDING":
            pending[refund.deposit_id].append(refund)
    recorded: Counter[str] = Counter()
    for charge in snapshot.charges:
        recorded[charge.key] = sum(refund.minor for refund in charge.refunds if refund.succeeded)
        yield from _twice_or_unknown(charge, known)
        yield from _in_another_currency(charge)
    for key in ledger.keys() | recorded.keys():
        deposit = snapshot.deposits.get(key)
        if deposit is None or recorded[key] == ledger[key]:
            continue
        # One that the provider has paid out and deposit has not recorded yet is asked for again by its key.
        on_its_way = sum(refund.amount_minor for refund in pending[key])
        if ledger[key] < recorded[key] <= ledger[key] + on_its_way:
            continue
        yield Violation(NAME, f"{key} refunds", _told(deposit, recorded[key], ledger[key]), _BY_HAND)


_BY_HAND = "Compare the refunds of this deposit with the provider's, one by one; correct by hand."


def _told(deposit: Deposit, provider: int, ledger: int) -> str:
    return f"the provider returned {deposit.money(provider)}, the ledger has {deposit.money(ledger)}"


def _twice_or_unknown(charge: Charge, known: set[str]) -> Iterator[Violation]:
    # A retry of a refund has the key refund_id/n, and is made only after a definite refusal.
    paid = Counter(refund.key.partition("/")[0] for refund in charge.refunds if refund.succeeded)
    for refund_id, times in paid.items():
        if times > 1:
            what = f"the provider paid the refund {refund_id} {times} times"
            yield Violation(NAME, refund_id, what, "The customer has too much: claim it back.")
        if refund_id not in known:
            what = f"the provider paid a refund {refund_id} that deposit does not know"
            yield Violation(NAME, refund_id, what, _BY_HAND)


def _in_another_currency(charge: Charge) -> Iterator[Violation]:
    for refund in charge.refunds:
        if refund.currency and refund.currency != charge.currency:
            what = f"the provider paid back {refund.currency} of a charge in {charge.currency}"
            yield Violation(NAME, refund.key, what, _BY_HAND)


def _ledger(snapshot: Snapshot, kind: str) -> Mapping[str, int]:
    """What was charged or returned by the ledger, by deposit."""
    sums: Counter[str] = Counter()
    for entry in snapshot.entries:
        if entry.kind == kind and entry.account == "PROVIDER_CLEARING":
            sums[entry.deposit_id] += abs(entry.amount_minor)
    return sums
