"""Amounts of money, summed: each currency by itself, since yen and euros make no sum."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from dinemesh.kit import currency


def per_currency(amounts: Iterable[tuple[int, str]]) -> str:
    """The sums of (minor units, currency code), to be read by people: "20.00 EUR + 4500 JPY"; "nothing" of
    none."""
    sums: Counter[str] = Counter()
    for minor, code in amounts:
        sums[code] += minor
    return " + ".join(currency.text(sums[code], code) for code in sorted(sums)) or "nothing"
