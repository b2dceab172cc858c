"""The sentences by which a person reads what happened."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from history_svc.domain import Cause, Facts, Kind, Money, Origin, Terms, entry, unknown

ORIGIN = Origin(
    event_id="e-1",
    type="dinemesh.reservation.v1.ReservationPlaced",
    source="reservation",
    aggregate_id="r-1",
    aggregate_version=1,
    occur_time=datetime(2026, 12, 1, tzinfo=UTC),
    customer_id="alice",
    reservation_id="r-1",
    correlation_id="c-1",
    causation_id="",
)
TABLE = Terms(datetime(2026, 12, 12, 19, 0, tzinfo=UTC), 4)
EIGHTY = Money(8000, "EUR")


def summary(kind: Kind, facts: Facts) -> str:
    return entry(ORIGIN, kind, facts).summary


@pytest.mark.parametrize(
    ("kind", "facts", "sentence"),
    [
        (
            Kind.RESERVATION_PLACED,
            Facts(terms=TABLE, amount=EIGHTY),
            "You asked for a table for 4 on Sat 12 Dec 2026, 19:00 UTC; the deposit of 80.00 EUR is paid.",
        ),
        (
            Kind.RESERVATION_MODIFIED,
            Facts(terms=TABLE._replace(party_size=6), previous=TABLE),
            "You changed your reservation from a table for 4 on Sat 12 Dec 2026, 19:00 UTC"
            " to a table for 6 on Sat 12 Dec 2026, 19:00 UTC; the restaurant is asked again.",
        ),
        (
            Kind.RESERVATION_MODIFICATION_FAILED,
            Facts(terms=TABLE, cause=Cause.CARD_DECLINED),
            "Your change was not made: the card was declined."
            " You still have a table for 4 on Sat 12 Dec 2026, 19:00 UTC.",
        ),
        (
            Kind.RESERVATION_DECLINED,
            Facts(terms=TABLE, cause=Cause.DEADLINE),
            "The restaurant did not answer in time for a table for 4 on Sat 12 Dec 2026, 19:00 UTC;"
            " your deposit goes back to you.",
        ),
        (
            Kind.RESERVATION_CANCELLED,
            Facts(terms=TABLE, cause=Cause.CUSTOMER, refunded=EIGHTY, forfeited=Money(0, "EUR")),
            "You cancelled a table for 4 on Sat 12 Dec 2026, 19:00 UTC; 80.00 EUR goes back to you.",
        ),
        (
            Kind.RESERVATION_CANCELLED,
            Facts(terms=TABLE, cause=Cause.CUSTOMER, refunded=Money(0, "EUR"), forfeited=EIGHTY),
            "You cancelled a table for 4 on Sat 12 Dec 2026, 19:00 UTC; 80.00 EUR is kept by the restaurant.",
        ),
        (
            Kind.RESERVATION_CANCELLED,
            Facts(terms=TABLE, cause=Cause.RESTAURANT),
            "The restaurant cancelled a table for 4 on Sat 12 Dec 2026, 19:00 UTC.",
        ),
        (
            Kind.RESERVATION_FAILED,
            Facts(terms=TABLE, cause=Cause.DEPOSIT_UNKNOWN),
            "Your request for a table for 4 on Sat 12 Dec 2026, 19:00 UTC did not become a reservation:"
            " the payment gave no answer in time; if the card was charged, it all goes back.",
        ),
        (
            Kind.DEPOSIT_DECLINED,
            Facts(code="insufficient_funds"),
            "Your card was declined (insufficient_funds); nothing was charged.",
        ),
        (Kind.DEPOSIT_REFUNDED, Facts(amount=EIGHTY), "80.00 EUR went back to your card."),
    ],
)
def test_a_summary_says_what_happened(kind: Kind, facts: Facts, sentence: str) -> None:
    assert summary(kind, facts) == sentence


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind is not Kind.UNKNOWN])
@pytest.mark.parametrize(
    "facts", [Facts(), Facts(terms=TABLE, amount=EIGHTY, refunded=EIGHTY, forfeited=EIGHTY)]
)
def test_every_kind_has_a_sentence_however_little_the_event_says(kind: Kind, facts: Facts) -> None:
    sentence = summary(kind, facts)
    assert sentence.endswith(".") and "None" not in sentence and "no words" not in sentence


def test_an_unknown_event_is_named_by_its_type() -> None:
    kept = unknown(ORIGIN)
    assert kept.kind is Kind.UNKNOWN
    assert ORIGIN.type in kept.summary
    assert kept.origin == ORIGIN


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (Money(8005, "EUR"), "80.05 EUR"),
        (Money(5, "EUR"), "0.05 EUR"),
        (Money(-150, "EUR"), "-1.50 EUR"),
        (Money(8000, "JPY"), "8000 JPY"),
        (Money(12345, "KWD"), "12.345 KWD"),
    ],
)
def test_money_is_written_as_its_currency_does(amount: Money, text: str) -> None:
    assert str(amount) == text
