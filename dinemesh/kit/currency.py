"""Currencies of ISO 4217 and their minor units, from the table that the standard's maintenance agency
publishes (the package iso4217 carries it). No I/O and no protobuf, so that rules may use it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import iso4217

# Units to reckon in that nobody pays with, though the table does not mark them as such: the Arab Accounting
# Dinar of the Arab Monetary Fund, and Uruguay's Unidad Previsional, an index.
_UNITS_OF_ACCOUNT = frozenset({"XAD", "UYW"})

# A code that is no means of payment was counted in hundredths before codes were looked up. Amounts that were
# stored then are read as they were written.
_UNKNOWN_DECIMALS = 2


def _means_of_payment() -> Iterator[tuple[str, int]]:
    """(code, decimals) of what can be paid with. The table marks funds such as CLF or USN, and gives no minor
    units to metals, bond units, drawing rights, and the codes for testing and for nothing at all."""
    for row in iso4217.raw_xml.iterfind("CcyTbl/CcyNtry"):
        code, minor_units, name = row.findtext("Ccy"), row.findtext("CcyMnrUnts", ""), row.find("CcyNm")
        is_fund = name is not None and name.get("IsFund", "").lower() == "true"
        if code and minor_units.isdigit() and not is_fund and code not in _UNITS_OF_ACCOUNT:
            yield code, int(minor_units)


_DECIMALS: Final = dict(_means_of_payment())


def is_means_of_payment(code: str) -> bool:
    """Whether the code is a currency of ISO 4217, in use today, that people pay with."""
    return code in _DECIMALS


def decimals(code: str) -> int:
    """Digits after the decimal point of an amount in this currency: 2 for EUR, 0 for JPY, 3 for KWD."""
    return _DECIMALS.get(code, _UNKNOWN_DECIMALS)


def amount(minor_units: int, code: str) -> str:
    """An amount as a decimal number, with the digits that its currency has: "12.50", "1250", "1.250"."""
    places = decimals(code)
    whole, part = divmod(abs(minor_units), 10**places)
    sign = "-" if minor_units < 0 else ""
    return f"{sign}{whole}.{part:0{places}}" if places else f"{sign}{whole}"


def text(minor_units: int, code: str) -> str:
    """An amount with its currency, to be read by people: "12.50 EUR", "1250 JPY"."""
    return f"{amount(minor_units, code)} {code}".strip()
