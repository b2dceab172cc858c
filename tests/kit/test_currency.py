"""Currencies: what can be paid with, and how many digits an amount has."""

from __future__ import annotations

import iso4217
import pytest

from dinemesh.kit import currency

NO_DECIMALS = "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX VND VUV XAF XOF XPF"
THREE_DECIMALS = "BHD IQD JOD KWD LYD OMR TND"
PAID_WITH = "EUR USD GBP CHF JPY KWD ISK XAF XCG XOF XPF VES ZWG"
NOT_PAID_WITH = {
    "metals": "XAU XAG XPT XPD",
    "bond units": "XBA XBB XBC XBD",
    "units of account": "XDR XSU XUA XAD UYW",
    "funds": "BOV CHE CHW CLF COU MXV USN UYI",
    "for tests, and for nothing": "XTS XXX",
    "withdrawn": "DEM FRF HRK ANG ZWL VEF",
    "never assigned": "EUE ZZZ AAA",
    "no code": "eur € 978 EUR0",
}


@pytest.mark.parametrize("code", PAID_WITH.split())
def test_money_is_a_means_of_payment(code: str) -> None:
    assert currency.is_means_of_payment(code)


@pytest.mark.parametrize("kind", NOT_PAID_WITH)
def test_what_nobody_pays_with_is_none(kind: str) -> None:
    codes = [*NOT_PAID_WITH[kind].split(), "", " EUR"]
    assert not [code for code in codes if currency.is_means_of_payment(code)]


def test_minor_units_are_those_of_the_standard() -> None:
    """Amounts are stored in them: a newer table that says something else of one needs a migration first."""
    none, three = set(NO_DECIMALS.split()), set(THREE_DECIMALS.split())
    expected = {
        one.code: 0 if one.code in none else 3 if one.code in three else 2 for one in iso4217.Currency
    }
    paid_with = {code for code in expected if currency.is_means_of_payment(code)}
    assert none | three | {"EUR", "USD"} <= paid_with
    assert len(paid_with) > 150
    assert {code: currency.decimals(code) for code in paid_with} == {
        code: expected[code] for code in paid_with
    }


@pytest.mark.parametrize("code", ["CLF", "UYI", "XAU", "EUE", "DEM"])
def test_what_was_agreed_in_a_code_that_is_not_taken_any_more_is_read_as_it_was_written(code: str) -> None:
    assert currency.text(12345, code) == f"123.45 {code}"


@pytest.mark.parametrize(
    ("minor_units", "code", "text"),
    [
        (1250, "EUR", "12.50 EUR"),
        (5, "EUR", "0.05 EUR"),
        (-150, "EUR", "-1.50 EUR"),
        (12000, "JPY", "12000 JPY"),
        (0, "JPY", "0 JPY"),
        (1250, "KWD", "1.250 KWD"),
        (10**15 + 1, "EUR", "10000000000000.01 EUR"),
        (0, "", "0.00"),
    ],
)
def test_an_amount_has_the_digits_of_its_currency(minor_units: int, code: str, text: str) -> None:
    assert currency.text(minor_units, code) == text
